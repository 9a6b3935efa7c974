"""SeaweedFS as a process of its own: a second S3-compatible server, with disks below it."""

import json
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import httpx2

from tests.store_server import BUCKET

PROGRAM = Path(__file__).parents[1] / "build" / "seaweedfs" / "bin" / "weed"  # the Makefile unpacks it
PATIENCE_SECONDS = 300.0  # for a busy machine; nothing waits longer than it must
SERVERS = ("master", "volume", "filer", "s3")  # each listens on a port for HTTP and on one for gRPC
ACCESS = {
    "identities": [
        {
            "name": "tests",
            "credentials": [{"accessKey": "anybody", "secretKey": "anything"}],
            "actions": ["Admin", "Read", "Write", "List"],
        },
        {"name": "anonymous", "actions": ["Admin"]},  # so that the bucket is made without a signature
    ]
}


class SeaweedServer:
    """Keeps what it is given in a folder, listens on loopback alone, and reports nothing to its makers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = free_ports(2 * len(SERVERS))
        self._http, self._grpc = (dict(zip(SERVERS, each, strict=True)) for each in (ports[::2], ports[1::2]))
        self.port = self._http["s3"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self._folder / "data").mkdir()
        (self._folder / "access.json").write_text(json.dumps(ACCESS))
        options: dict[str, object] = {
            "dir": self._folder / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 64,
            "volume.max": 20,
            "volume.minFreeSpace": "1MiB",
            "filer": "true",
            "filer.localSocket": self._folder / "filer.sock",
            "s3": "true",
            "s3.config": self._folder / "access.json",
            "s3.localSocket": self._folder / "s3.sock",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
        }
        options |= {f"{name}.port": port for name, port in self._http.items()}
        options |= {f"{name}.port.grpc": port for name, port in self._grpc.items()}
        given = [f"-{name}={value}" for name, value in options.items()]
        command = [str(PROGRAM), "-logtostderr=true", "server", *given]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + PATIENCE_SECONDS
        while not self._has_bucket():
            assert self._process.poll() is None, self._log_path.read_text()
            assert time.monotonic() < until, self._log_path.read_text()
            time.sleep(0.1)

    @property
    def _log_path(self) -> Path:
        return self._folder / "log"

    def _has_bucket(self) -> bool:
        """Make the bucket, as soon as the server can store something in it."""
        try:
            httpx2.put(f"http://127.0.0.1:{self.port}/{BUCKET}")
            return httpx2.put(f"http://127.0.0.1:{self.port}/{BUCKET}/ready", content=b"-").is_success
        except httpx2.TransportError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for name, port in self._grpc.items():  # no option puts these elsewhere, and they are left behind
            Path(f"/tmp/seaweedfs-{name}-grpc-{port}.sock").unlink(missing_ok=True)


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [each.getsockname()[1] for each in sockets]
