"""Supervises several processes that serve one port: starts them, restarts those that die, and stops them.

uvicorn's own supervisor is not used, for two reasons. It makes the server itself from the name of an application, so
our server class and a process' slot cannot be passed to it. And its processes outlive a supervisor that is killed.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import Thread
from uuid import uuid4

import structlog

from jobs import logs
from jobs.settings import Settings
from service.process_slot import Slot
from service.serving import STOP_SECONDS, error_line, serve

log = structlog.get_logger("service.processes")

STOP_MARGIN_SECONDS = 3.0  # beyond the time that a process takes to stop by itself; then it is killed
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0  # before a restart, doubled with each early death
STEADY_SECONDS = 60.0  # a process that ran for longer did not die early
MOST_FAILED_STARTS = 4  # of one process in succession while no other process serves
CAUSE_CHARACTERS = 500
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class NoStartError(Exception):
    """The processes of a service fail at every start; the message is one line with the reason."""


@dataclass
class Child:
    """A running process and its report: "" once it serves, otherwise the reason why it cannot."""

    process: SpawnProcess
    reports: Connection
    started_at: float
    has_reported: bool = False
    serves: bool = False
    cause: str = ""

    def read(self) -> None:
        self.has_reported = True
        with contextlib.suppress(EOFError):  # it was killed before its report
            self.cause = str(self.reports.recv())
            self.serves = not self.cause


class Processes:
    """The processes of one service, by slot. They are spawned, not forked, because each opens its own connections."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings, self._listener = settings, listener
        self._service, self._spawn = uuid4().hex, multiprocessing.get_context("spawn")
        self._running: dict[int, Child] = {}
        self._early_deaths = dict.fromkeys(range(settings.service_processes), 0)
        self._failed_starts = dict.fromkeys(range(settings.service_processes), 0)  # of each, in succession
        self._due_at: dict[int, float] = {}  # times of restarts, by slot

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; after that the signal has its default effect in this process too.

        Raises: NoStartError if no process serves and one has failed at MOST_FAILED_STARTS starts in succession.
        """
        with heard_signals() as hearing:
            for index in self._early_deaths:
                self._start(index)
            try:
                while not self._hears(hearing):
                    self._restart_due()
            except NoStartError:
                self._stop()
                raise
            number = signal.Signals(hearing.recv(1)[0])
            log.info("stopping", signal=number.name)
            self._stop()
        self._listener.close()
        signal.raise_signal(number)

    def _start(self, index: int) -> None:
        slot = Slot(self._service, index, self._settings.service_processes)
        reports, report = self._spawn.Pipe(duplex=False)
        process = self._spawn.Process(
            target=serve_at, args=(self._settings, self._listener, slot, report), name=f"service-{index}"
        )
        process.start()
        report.close()  # only this end; the process has its own
        self._running[index] = Child(process, reports, time.monotonic())
        log.info("process_started", process=index, pid=process.pid)

    def _hears(self, hearing: socket.socket) -> bool:
        """Wait for a signal, a report, the death of a process or the time of a restart; True if it was a signal.

        Raises: NoStartError.
        """
        pause = max(0.0, min(self._due_at.values()) - time.monotonic()) if self._due_at else None
        awaited = [each.reports for each in self._running.values() if not each.has_reported]
        ready = wait([hearing, *awaited, *(each.process.sentinel for each in self._running.values())], pause)
        for index, child in list(self._running.items()):
            if child.reports in ready:
                child.read()
            if child.process.sentinel in ready:
                self._bury(index, child)
        return hearing in ready

    def _bury(self, index: int, child: Child) -> None:
        """Note the death of a process, and plan its restart. Raises: NoStartError if a restart would fail too."""
        child.process.join()
        if not child.has_reported:
            child.read()
        child.reports.close()
        del self._running[index]
        early = time.monotonic() - child.started_at < STEADY_SECONDS
        self._early_deaths[index] = self._early_deaths[index] + 1 if early else 1
        self._failed_starts[index] = 0 if child.serves else self._failed_starts[index] + 1
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (self._early_deaths[index] - 1))
        self._due_at[index] = time.monotonic() + pause
        died = {"process": index, "pid": child.process.pid, "status": child.process.exitcode}
        log.error("process_died", **died, cause=child.cause, started_again_in_seconds=pause)
        if self._failed_starts[index] >= MOST_FAILED_STARTS and not any(each.serves for each in self._running.values()):
            cause = child.cause or f"it ended with status {child.process.exitcode} before it served"
            raise NoStartError(f"its processes fail at every start: {cause}")

    def _restart_due(self) -> None:
        for index, due_at in list(self._due_at.items()):
            if time.monotonic() >= due_at:
                del self._due_at[index]
                self._start(index)

    def _stop(self) -> None:
        """Stop all processes at the same time, and kill those that do not stop."""
        processes = {index: each.process for index, each in self._running.items()}
        for each in processes.values():
            each.terminate()
        until = time.monotonic() + STOP_SECONDS + STOP_MARGIN_SECONDS
        for index, each in processes.items():
            each.join(max(0.0, until - time.monotonic()))
            if each.is_alive():
                log.error("process_killed", process=index, pid=each.pid, why="it did not stop in time")
                each.kill()
                each.join()


def serve_at(settings: Settings, listener: socket.socket, slot: Slot, report: Connection) -> None:
    """Run one of a service's processes; report once that it serves, or why it cannot."""
    Thread(target=end_with_parent, daemon=True).start()
    logs.configure(settings, **slot.labels)
    # Ctrl-C in a terminal interrupts every process; when KeyboardInterrupt is raised here, uvicorn has stopped
    with contextlib.suppress(KeyboardInterrupt):
        try:
            serve(settings, listener, slot, lambda cause: report.send(cause[:CAUSE_CHARACTERS]))
        except Exception as error:
            report.send(error_line(error)[:CAUSE_CHARACTERS])
            raise


def end_with_parent() -> None:
    """Stop this process if its parent has died, because otherwise it would keep the port unsupervised."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def heard_signals() -> Iterator[socket.socket]:
    """A socket from which each SIGTERM and SIGINT is read as one byte, its number; they do not end the process here."""
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = {each: signal.signal(each, lambda *_: None) for each in SIGNALS}
    wakeup = signal.set_wakeup_fd(writing.fileno())
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        reading.close()
        writing.close()
