"""Training processes by the hundred: one process imports everything, and each life of a run is a fork of it.

A fork is a process of its own, with its own pid, locks and files, and dies of SIGKILL like any other. The process that
forks has only imported: no thread of torch's has been started in it.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class Lives:
    """Starts lives of runs, and waits for their ends."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.training.lives"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # it ends with its input

    def start(self, folder: Path, images: Path, steps: int, processes: int = 1) -> list[int]:
        """The pids of a run's processes."""
        pids: list[int] = self._ask({"start": [str(folder), str(images), steps, processes, free_port()]})
        return pids

    def wait(self, pids: list[int]) -> list[int]:
        """Their exit statuses, negative for a signal."""
        statuses: list[int] = self._ask({"wait": pids})
        return statuses

    def _ask(self, call: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def serve() -> None:
    """Answer calls, a line each, until the input ends."""
    import torch
    import torch._dynamo  # an optimiser's first step imports it

    from tests.training.samples import config
    from training.session import Request, train

    def live(folder: str, images: str, steps: int) -> None:
        torch.set_num_threads(1)
        saving = {"state_seconds": 1e-6}
        train(config(data={"path": images}, optimiser={"steps": steps}, saving=saving), Request(Path(folder)))

    def fork(folder: str, images: str, steps: int, processes: int, port: int, rank: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if processes > 1:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank), **address}
        status = 1
        try:
            live(folder, images, steps)
            status = 0
        finally:
            os._exit(status)  # not back into the loop of its parent

    for line in sys.stdin:
        call = json.loads(line)
        if "start" in call:
            folder, images, steps, processes, port = call["start"]
            answer = [fork(folder, images, steps, processes, port, rank) for rank in range(processes)]
        else:
            answer = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in call["wait"]]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
