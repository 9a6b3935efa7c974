"""Serves the application in one process: uvicorn, on a listening socket."""

import contextlib
import ctypes
import gc
import resource
import socket
from collections.abc import Callable

import structlog
import uvicorn
from fastapi import FastAPI

from jobs.settings import Settings
from service.app import START_FAILURE, create_app
from service.process_slot import Slot
from service.protocol import Limits, limited
from service.state import Service
from tracing import recording

STOP_SECONDS = 5  # for requests in progress, which are then aborted; streams and waiting answers end at once
MANY_FILES = 65_536  # if the system sets no limit
M_ARENA_MAX = -8  # of malloc.h
Report = Callable[[str], None]
OTHER_FILES = 128  # open files that are not callers' connections: Redis, the store, modules, uploads


class Server(uvicorn.Server):
    """Ends waiting answers at a stop signal, because the lifespan's shutdown comes only after all answers."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, report: Report) -> None:
        super().__init__(config)
        self._app, self._report = app, report

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn has logged the reason why the application did not start
            self._report(error_line(getattr(self._app.state, START_FAILURE, None)))
            raise
        self._report("")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service: Service = self._app.state.service
        service.hub.stop()
        await super().shutdown(sockets)


def serve(settings: Settings, listener: socket.socket, slot: Slot, report: Report = lambda _: None) -> None:
    """Serve until SIGTERM or SIGINT; return when all requests have been answered or aborted.

    report is called once: with "" when the application serves, or with the reason why it cannot start.
    """
    share_heaps()
    num_connections = min(settings.max_connections, usable_files() - OTHER_FILES)
    if num_connections < settings.max_connections:
        structlog.get_logger("service").warning(
            "few_files", max_connections=num_connections, asked=settings.max_connections, raise_with="ulimit -n"
        )
        settings = settings.model_copy(update={"max_connections": num_connections})
    tracing = recording.start("service", **slot.labels)
    app = create_app(settings, slot, tracing)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=limited(
            Limits(
                settings.max_connections,
                settings.max_connections_per_address,
                settings.max_header_bytes,
                settings.max_unread_bytes,
                settings.client_seconds,
            )
        ),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        reset_contextvars=True,  # else a pipelined request would inherit the log context of the one before
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    config.load()  # imports the remaining modules
    gc.collect()
    gc.freeze()  # else full collections inspect half a million objects of modules: 65 ms, twice a second under load
    Server(config, app, report).run(sockets=[listener])


def error_line(error: BaseException | None) -> str:
    """An error in one line."""
    return "the application did not start" if error is None else f"{type(error).__name__}: {error}"


def share_heaps() -> None:
    """Let all threads share two of glibc's arenas. By default each thread has its own, which stays half empty."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def usable_files() -> int:
    """Raise the soft limit of open files to the hard limit, and return it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    usable = MANY_FILES if most == resource.RLIM_INFINITY else most
    resource.setrlimit(resource.RLIMIT_NOFILE, (usable, most))
    return usable
