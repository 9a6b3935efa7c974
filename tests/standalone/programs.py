"""Small real programs for a supervisor to run, and a supervisor to run them in a process of its own."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import psutil

from standalone.child import Backoff, ChildSpec
from standalone.log import Log
from standalone.supervisor import Supervisor, run_until_signalled, sole_owner
from tests.waiting import PATIENCE_SECONDS

STOP_SECONDS = 3600.0  # time limit for children; longer than any test waits, so a child must stop by itself
QUICK = Backoff(first_seconds=0.01, most_seconds=0.04)

# Blocks SIGTERM before it prints that it serves: otherwise the signal could arrive before sigwait is called.
OBEDIENT = (
    "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); print('serving', flush=True);"
    "signal.sigwait([signal.SIGTERM]); print('bye')"
)
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('serving', flush=True); time.sleep(3600)"
)
ENDS = (
    "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); print('serving', flush=True);"
    "signal.sigwait([signal.SIGUSR1]); sys.exit(2)"
)
REFUSES = "import sys; print('weights/base.safetensors: key out.weight is missing', flush=True); sys.exit(3)"
HOPELESS = "import sys; print('ADM_HOST: 0.0.0.0 is not loopback', flush=True); sys.exit(2)"
PARENT = (
    "import subprocess, sys, time;"
    "child = subprocess.Popen([sys.executable, '-I', '-c', 'import time; time.sleep(3600)']);"
    "print('child', child.pid, flush=True); time.sleep(3600)"
)


class Lines(Log):
    """Keeps the lines, and lets a test wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._written = asyncio.Event()

    def line(self, name: str, text: str) -> None:
        self.lines.append(f"{name}: {text}")
        self._written.set()

    async def first(self, containing: str) -> str:
        """The first line that contains the text, waited for."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                for line in self.lines:
                    if containing in line:
                        return line
                self._written.clear()
                await self._written.wait()


def never_ready(spec: ChildSpec) -> ChildSpec:
    """The child, except that it is never ready."""

    async def never(_: float) -> bool:
        return False

    return replace(spec, is_ready=never)


def program(name: str, source: str, *, stop_seconds: float = 10.0, backoff: Backoff = QUICK) -> ChildSpec:
    """A child that runs Python source and is ready at once."""

    async def at_once(_: float) -> bool:
        return True

    return ChildSpec(
        name=name,
        command=(sys.executable, "-I", "-S", "-c", source),
        is_ready=at_once,
        stop_seconds=stop_seconds,
        backoff=backoff,
    )


def alive(pid: int) -> bool:
    """Return whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def written_pid(pid_file: Path) -> int | None:
    """The pid in a pid file; None while it does not exist or is not yet written."""
    try:
        return int(pid_file.read_text())
    except (FileNotFoundError, ValueError):
        return None


async def nothing() -> None:
    """A program that does nothing, to run beside the children."""


def main() -> None:
    """Run two programs until a signal: the folder and the first one's source come as arguments."""
    run_dir, source = Path(sys.argv[1]), sys.argv[2]
    log = Log()
    with sole_owner(run_dir):
        specs = [program("first", source, stop_seconds=STOP_SECONDS), program("last", OBEDIENT)]
        supervisor = Supervisor(specs, run_dir, log, foundations=frozenset({"last"}))
        asyncio.run(run_until_signalled(supervisor, log, nothing()))


if __name__ == "__main__":
    main()
