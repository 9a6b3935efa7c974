"""Starts programs as forks of a process that has imported their modules, which takes seconds with torch.

A program then runs as `python -m MODULE ARGUMENT...` would, with its environment, its output and its exit status, as a
process of its own, which tests may kill. It ends with the suite. Two things differ: libraries have read their variables
(OMP_*) from the suite's environment, and the memory is that of a fork. So measurements start their programs by
`start_cold`.

This module is also the process that forks: it reads requests from a socket. Between it and a program is another fork,
which waits for the program and reports its status.
"""

import atexit
import contextlib
import ctypes
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

ROOT = Path(__file__).parents[1]
REQUEST_BYTES = 1 << 18
REPORT_BYTES = 16  # of a process id, and then of an exit status
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Modules that a program imports; a worker imports the last one of these for its first gradient.
WORKER = ("worker.main", "torch.fx.experimental.symbolic_shapes")
EVALUATION = (*WORKER, "evaluation.report")
SERVICE = ("service.processes",)


class WarmProgram:
    """A running program; the methods are those of `subprocess.Popen`."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: int,
        imports: Sequence[str],
        errors: int | None = None,
    ) -> None:
        """Start it; imports: modules that are imported before.

        output: a descriptor for what it prints; errors: for what it prints on stderr, by default the same one.
        """
        self.returncode: int | None = None
        self._reports, report = os.pipe()
        request = {"module": module, "arguments": arguments, "environment": dict(environment)}
        try:
            warm_process(tuple(imports)).start(request, [output, output if errors is None else errors, report])
        finally:
            os.close(report)
        self.pid = self._report()

    def poll(self) -> int | None:
        return self._read(0)

    def wait(self, timeout: float | None = None) -> int:
        if (status := self._read(timeout)) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its status is on the way
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._reports], [], [], seconds)[0]:
            self.returncode = self._report()
            os.close(self._reports)
        return self.returncode

    def _report(self) -> int:
        if not (report := os.read(self._reports, REPORT_BYTES)):
            raise RuntimeError("the warm process has ended; the output of the suite says why")
        return int(report)


Program = subprocess.Popen[bytes] | WarmProgram
StartProgram = Callable[[str, Sequence[str], Mapping[str, str], int, Sequence[str]], Program]
"""Starts a module with arguments, an environment and a descriptor for what it prints; it may import modules before."""


def start_cold(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], output: int, imports: Sequence[str]
) -> subprocess.Popen[bytes]:
    """Start a program in an interpreter of its own, as users do, to measure its start or its memory."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)


def run_warm(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], imports: Sequence[str]
) -> tuple[int, str, str]:
    """Run a program to its end; returns its status, what it printed, and what it printed on stderr."""
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        status = WarmProgram(module, arguments, environment, output.fileno(), imports, errors.fileno()).wait()
        output.seek(0)
        errors.seek(0)
        return status, output.read(), errors.read()


class WarmProcess:
    """A process that has imported modules, and from which programs are forked."""

    def __init__(self, imports: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.warm", str(theirs.fileno()), *imports]
        self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        theirs.close()

    def start(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """Fork a program, which gets output, errors and a pipe that reports its process id and later its status."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], list(descriptors))

    def stop(self) -> None:
        self._socket.close()
        self._process.wait()


@cache
def warm_process(imports: tuple[str, ...]) -> WarmProcess:
    """The warm process of these modules; it ends with this one. A service's has no torch, unlike a worker's."""
    process = WarmProcess(imports)
    atexit.register(process.stop)
    return process


def main() -> None:
    """Serve requests; in a forked process, run its program."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the suite
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for the status of a fork that has reported
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 3)
        if not data:
            return
        if os.fork() == 0:
            requests.close()
            stand_between(*descriptors)
            become(json.loads(data))
            return
        for each in descriptors:
            os.close(each)


def stand_between(output: int, errors: int, report: int) -> None:
    """Fork the program and return in it; the process between reports its id, and its status when it has ended."""
    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if (program := os.fork()) == 0:
        die_with_parent()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(errors, 2)
        for each in (output, errors, report):
            os.close(each)
        return
    os.close(output)
    os.close(errors)
    os.write(report, str(program).encode().ljust(REPORT_BYTES))
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    os.write(report, str(status).encode().ljust(REPORT_BYTES))
    os._exit(0)


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def become(request: Mapping[str, Any]) -> None:
    """Turn this process into the program, until it ends."""
    os.setsid()  # a group of its own, so that a test can find its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
