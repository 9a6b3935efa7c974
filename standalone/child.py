"""Runs one child process: starts it, restarts it when it dies, and stops it within its time."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.contract.errors import SETTINGS_STATUS
from standalone import launcher
from standalone.log import LineSplitter, Log

SHORTENED_STOP_SECONDS = 1.0  # time for a child after the second Ctrl-C
PROBE_SECONDS = 0.2  # between two readiness probes of a starting child
OUTPUT_SECONDS = 1.0  # for the last lines of a dead child whose own children may keep its pipe open


@dataclass(frozen=True)
class Backoff:
    """Delays before restarts of a child: doubled with each death, and reset after a steady run."""

    first_seconds: float = 0.5
    most_seconds: float = 60.0
    steady_seconds: float = 30.0

    def delay_seconds(self, deaths: int) -> float:
        """Delay after that many deaths in succession, counted from 1."""
        return min(self.first_seconds * 2.0 ** (deaths - 1), self.most_seconds)


@dataclass(frozen=True)
class ChildSpec:
    """A program to keep running.

    `is_ready` is called with the program's start time (Unix seconds) until it first returns True.
    """

    name: str
    command: Sequence[str]
    is_ready: Callable[[float], Awaitable[bool]]
    stop_seconds: float  # between SIGTERM and SIGKILL
    pid_name: str = ""  # the pid file's stem, if not the name
    environment: Mapping[str, str] | None = None  # None: the supervisor's own
    backoff: Backoff = field(default_factory=Backoff)


class Child:
    """Keeps one program running from `start()` until `stop()`.

    Call both from one event loop in the main thread, because on Linux a child dies with the thread that started it.
    """

    def __init__(self, spec: ChildSpec, run_dir: Path, log: Log) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.settled = asyncio.Event()  # ready, or dead for the first time
        self.misconfigured = asyncio.Event()  # its settings are wrong, so it is not restarted
        self.last_line = ""
        self.pid_file = run_dir / f"{spec.pid_name or spec.name}.pid"
        self._log = log
        self._was_ready = False
        self._stopping = asyncio.Event()
        self._stop_shortened = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run the program, and restart it when it ends, until `stop()`."""
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Send SIGTERM and wait; send SIGKILL after the program's stop_seconds. No process of it is left on return."""
        if self._keeping is None:
            return
        self._log.line("stack", f"stopping {self.spec.name}: {self.spec.stop_seconds:.0f} s at most")
        self._stopping.set()
        await self._keeping

    def shorten_stop(self) -> None:
        """Shorten the wait of a present or future `stop()`."""
        self._stop_shortened.set()

    async def _keep(self) -> None:
        deaths = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            status = await self._run_once()
            self.ready.clear()
            self.settled.set()
            if self._stopping.is_set():
                return
            if status == SETTINGS_STATUS and not self._was_ready:
                self.misconfigured.set()
                return
            deaths = 1 if time.monotonic() - started >= self.spec.backoff.steady_seconds else deaths + 1
            delay = self.spec.backoff.delay_seconds(deaths)
            self._log.line("stack", f"{self.spec.name} {how_it_ended(status)}; starting it again in {delay:g} s")
            await happens(self._stopping, within_seconds=delay)

    async def _run_once(self) -> int:
        started_at = time.time()
        process, output = await self._launch()
        probe = asyncio.create_task(self._probe(started_at))
        exited = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({exited, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        probe.cancel()
        if not exited.done():
            await self._end(process, exited)
        status = await exited
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # processes that it started and left
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(output, OUTPUT_SECONDS)
        self.pid_file.unlink(missing_ok=True)
        return status

    async def _launch(self) -> tuple[asyncio.subprocess.Process, asyncio.Task[None]]:
        # This is not a pipe of asyncio, whose wait() may last until the child's own children have closed it.
        read_end, write_end = os.pipe()
        output = asyncio.create_task(self._forward(read_end))
        try:
            # A session of its own, so that Ctrl-C in the terminal reaches only the supervisor, which stops all in
            # order.
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", launcher.__file__, str(os.getpid()), str(self.pid_file), *self.spec.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                env=self.spec.environment,
                start_new_session=True,
            )
        finally:
            os.close(write_end)
        return process, output

    async def _end(self, process: asyncio.subprocess.Process, exited: asyncio.Task[int]) -> None:
        send(process, signal.SIGTERM)
        shortened = asyncio.create_task(self._stop_shortened.wait())
        await asyncio.wait({exited, shortened}, timeout=self.spec.stop_seconds, return_when=asyncio.FIRST_COMPLETED)
        if shortened.done() and not exited.done():
            await asyncio.wait({exited}, timeout=SHORTENED_STOP_SECONDS)
        shortened.cancel()
        if not exited.done():
            self._log.line("stack", f"{self.spec.name} did not stop in time; killing it")
            send(process, signal.SIGKILL)

    async def _forward(self, read_end: int) -> None:
        reader, lines = asyncio.StreamReader(), LineSplitter()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
        )
        try:
            while True:
                chunk = await reader.read(65536)
                for line in lines.feed(chunk):
                    self._log.line(self.spec.name, line)
                    self.last_line = line
                if not chunk:
                    return
        finally:
            transport.close()

    async def _probe(self, started_at: float) -> None:
        while not await self.spec.is_ready(started_at):
            await asyncio.sleep(PROBE_SECONDS)
        self._log.line("stack", f"{self.spec.name} is ready")
        self._was_ready = True
        self.ready.set()
        self.settled.set()


async def happens(event: asyncio.Event, *, within_seconds: float) -> bool:
    """Wait for an event; return False after within_seconds."""
    try:
        await asyncio.wait_for(event.wait(), within_seconds)
    except TimeoutError:
        return False
    return True


def send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signal a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def how_it_ended(status: int) -> str:
    """A text for a return code."""
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by {signal.Signals(-status).name}"
