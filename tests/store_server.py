"""A real S3-compatible server (moto's) as a process of its own, and a bucket in it."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread

import httpx2

BUCKET = "adm"
PATIENCE_SECONDS = 300.0


class StoreServer:
    """Keeps what it is given in memory until it is stopped."""

    def __init__(self, log_path: Path) -> None:
        self._log_path = log_path
        self.port = 0
        self._process: subprocess.Popen[str] | None = None
        self._listens = Event()

    def start(self) -> None:
        command = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        Thread(target=self._read, name="log of the store", daemon=True).start()
        assert self._listens.wait(PATIENCE_SECONDS), self._log_path.read_text()
        assert httpx2.put(f"http://127.0.0.1:{self.port}/{BUCKET}", timeout=60).status_code == 200

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._log_path.open("a") as log, self._process.stdout:
            for line in self._process.stdout:
                log.write(line)
                log.flush()
                if found := re.search(r"Running on http://127\.0\.0\.1:(\d+)", line):
                    self.port = int(found[1])
                    self._listens.set()

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def variables(port: int) -> Mapping[str, str]:
    """The environment for a server at a port, as users set it for MinIO and similar servers."""
    return {
        "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "anybody",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_REGION": "us-east-1",
        "no_proxy": os.environ.get("no_proxy", "") + ",127.0.0.1",
    }
