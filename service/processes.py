"""Several processes that serve one port: started together, started again when one dies, stopped together.

uvicorn's own supervisor makes its server itself, from an application named by a string, so neither our server's early
release of held answers nor a process' slot could reach it; and its processes outlive a supervisor that is killed.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from threading import Thread
from uuid import uuid4

import structlog

from jobs import logs
from jobs.settings import Settings
from service.serving import STOP_SECONDS, serve
from service.slot import Slot

log = structlog.get_logger("service.processes")

STOP_MARGIN_SECONDS = 3.0  # beyond what a process takes to stop by itself; then it is killed
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0  # before a process is started again, doubled by each early death
STEADY_SECONDS = 60.0  # a process that lived so long did not die early
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Processes:
    """The processes of one service, by their slots. They are spawned, not forked: each opens its own connections."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings, self._listener = settings, listener
        self._service, self._spawn = uuid4().hex, multiprocessing.get_context("spawn")
        self._running: dict[int, SpawnProcess] = {}
        self._started_at: dict[int, float] = {}
        self._early_deaths = dict.fromkeys(range(settings.service_processes), 0)
        self._due_at: dict[int, float] = {}  # of those that are to be started again

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, which then takes its usual course in this process too."""
        with heard_signals() as hearing:
            for index in self._early_deaths:
                self._start(index)
            while not self._hears(hearing):
                self._restart_due()
            number = signal.Signals(hearing.recv(1)[0])
            log.info("stopping", signal=number.name)
            self._stop()
        self._listener.close()
        signal.raise_signal(number)

    def _start(self, index: int) -> None:
        slot = Slot(self._service, index, self._settings.service_processes)
        process = self._spawn.Process(
            target=serve_at, args=(self._settings, self._listener, slot), name=f"service-{index}"
        )
        process.start()
        self._running[index], self._started_at[index] = process, time.monotonic()
        log.info("process_started", process=index, pid=process.pid)

    def _hears(self, hearing: socket.socket) -> bool:
        """Wait for a signal, the death of a process, or until one is to be started again; whether it is a signal."""
        pause = max(0.0, min(self._due_at.values()) - time.monotonic()) if self._due_at else None
        ready = wait([hearing, *(each.sentinel for each in self._running.values())], pause)
        for index, process in list(self._running.items()):
            if process.sentinel in ready:
                self._bury(index, process)
        return hearing in ready

    def _bury(self, index: int, process: SpawnProcess) -> None:
        process.join()
        del self._running[index]
        early = time.monotonic() - self._started_at[index] < STEADY_SECONDS
        self._early_deaths[index] = self._early_deaths[index] + 1 if early else 1
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (self._early_deaths[index] - 1))
        self._due_at[index] = time.monotonic() + pause
        log.error(
            "process_died", process=index, pid=process.pid, status=process.exitcode, started_again_in_seconds=pause
        )

    def _restart_due(self) -> None:
        for index, due_at in list(self._due_at.items()):
            if time.monotonic() >= due_at:
                del self._due_at[index]
                self._start(index)

    def _stop(self) -> None:
        """Let all stop at once, and end what does not."""
        for each in self._running.values():
            each.terminate()
        until = time.monotonic() + STOP_SECONDS + STOP_MARGIN_SECONDS
        for index, each in self._running.items():
            each.join(max(0.0, until - time.monotonic()))
            if each.is_alive():
                log.error("process_killed", process=index, pid=each.pid, why="it did not stop in time")
                each.kill()
                each.join()


def serve_at(settings: Settings, listener: socket.socket, slot: Slot) -> None:
    """Be one of a service's processes."""
    Thread(target=end_with_parent, daemon=True).start()
    logs.configure(settings)
    structlog.contextvars.bind_contextvars(**slot.labels)
    with contextlib.suppress(KeyboardInterrupt):  # of a terminal, which sends it to all; uvicorn has stopped by it
        serve(settings, listener, slot)


def end_with_parent() -> None:
    """Stop this process when the one that started it has died, or it would hold the port without anybody knowing."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def heard_signals() -> Iterator[socket.socket]:
    """A socket that has a byte, the number, for each SIGTERM and SIGINT; neither ends the process meanwhile."""
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
