"""Starts children in order, keeps them running, and stops them in order; one supervisor per data folder."""

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path

from standalone.child import Child, ChildSpec
from standalone.log import Log

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StartError(Exception):
    """The programs cannot start here; the message is one line with the change that is needed."""


@contextlib.contextmanager
def sole_owner(run_dir: Path) -> Iterator[None]:
    """Lock the folder within the block, so that two supervisors cannot share it.

    Raises: StartError when another process has locked it, or the folder cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / "stack.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartError(f"ADM_DATA: {run_dir.parent} cannot be used: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StartError(
                f"another adm up or adm demo (process {owner}) runs on the folder {run_dir.parent}: stop it, "
                "or set ADM_DATA to another folder and ADM_PORT to another port"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


class Supervisor:
    """Runs the children of one data folder.

    `specs` are in the order of stopping. They start in the reverse order, and each of `foundations` must be ready
    before the next one starts: Redis starts first and stops last.
    """

    def __init__(self, specs: Sequence[ChildSpec], run_dir: Path, log: Log, *, foundations: frozenset[str]) -> None:
        self.children = {spec.name: Child(spec, run_dir, log) for spec in specs}
        self._foundations = foundations

    async def start(self) -> None:
        """Start all children; return when the last one is started, before it is ready."""
        for name, child in reversed(self.children.items()):
            child.start()
            if name in self._foundations:
                await child.ready.wait()

    async def stop(self) -> None:
        """Stop the children one after the other; none of their processes is left on return."""
        for child in self.children.values():
            await child.stop()

    async def first_misconfigured(self) -> Child:
        """Wait for the first child that cannot work with its settings, and return it."""
        waits = {asyncio.create_task(child.misconfigured.wait()): child for child in self.children.values()}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        return waits[done.pop()]

    def shorten_stop(self) -> None:
        """Shorten the waits of `stop()` to about a second per child."""
        for child in self.children.values():
            child.shorten_stop()


async def run_until_signalled(supervisor: Supervisor, log: Log, while_running: Coroutine[None, None, None]) -> None:
    """Run the children until the first SIGINT, SIGTERM or SIGHUP, then stop them; a second signal shortens that.

    `while_running` runs beside them and is cancelled when the stop begins.
    Raises: StartError, once all are stopped, when a child cannot work with its settings.
    """
    stopping = asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            supervisor.shorten_stop()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # under nohup SIGHUP stays ignored
            loop.add_signal_handler(number, on_signal)
    stopped, misconfigured = asyncio.create_task(stopping.wait()), asyncio.create_task(supervisor.first_misconfigured())
    beside = [asyncio.create_task(supervisor.start()), asyncio.create_task(while_running), stopped, misconfigured]
    try:
        await asyncio.wait({stopped, misconfigured}, return_when=asyncio.FIRST_COMPLETED)
        log.line("stack", "stopping; another Ctrl-C stops faster")
    finally:
        for task in beside:
            task.cancel()
        await supervisor.stop()
    if not stopping.is_set():
        child = misconfigured.result()
        raise StartError(f"{child.spec.name} cannot work with these settings: {child.last_line}")
