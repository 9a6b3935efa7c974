"""`adm service`: listens, and serves until it is told to stop."""

import contextlib
import errno
import gc
import resource
import socket
import sys

import structlog
import uvicorn
from fastapi import FastAPI
from redis import Redis
from redis.exceptions import RedisError

from jobs import logs
from jobs.contract.errors import SETTINGS_STATUS, SettingsError
from jobs.queue import keys
from jobs.queue.server import check_server, connect_redis
from jobs.settings import Settings
from jobs.storage.data_folder import keep_private
from jobs.storage.images import ImageStore
from service.app import create_app
from service.protocol import Limits, limited
from service.state import Service

STOP_SECONDS = 5  # what is still being answered then is cut; streams and held answers end by themselves at once
BACKLOG = 2048
MANY_FILES = 65_536  # where the system sets no limit
OTHER_FILES = 128  # that the process has open beside its callers' connections: to Redis and the store, modules, uploads


class Server(uvicorn.Server):
    """Lets go of held answers as soon as it is told to stop; a lifespan would hear of that when all are given."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service: Service = self._app.state.service
        service.hub.stop()
        await super().shutdown(sockets)


def main() -> None:
    """Serve with the environment's settings; leave with one line and SETTINGS_STATUS when that cannot be."""
    keep_private()
    try:
        settings = Settings.load()
        ImageStore(settings.store_address)  # one that cannot be used must fail here, in one line
        with connect_redis(settings.redis_address) as redis, contextlib.suppress(RedisError):  # it may start later
            check_server(redis)
            refuse_to_serve_nobody(settings, redis)
        listener = listen(settings)
    except SettingsError as error:
        print(f"adm service: {error}", file=sys.stderr)
        sys.exit(SETTINGS_STATUS)
    logs.configure(settings)
    host, port = listener.getsockname()[:2]
    log = structlog.get_logger("service")
    log.info("listening", host=host, port=port)
    num_connections = min(settings.max_connections, usable_files() - OTHER_FILES)
    if num_connections < settings.max_connections:
        log.warning(
            "few_files", max_connections=num_connections, asked=settings.max_connections, raise_with="ulimit -n"
        )
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=limited(
            Limits(
                num_connections,
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
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    config.load()  # imports what is left to import
    gc.collect()
    gc.freeze()  # a full collection would look at the half million objects of modules: 65 ms, twice a second under load
    Server(config, app).run(sockets=[listener])


def refuse_to_serve_nobody(settings: Settings, redis: Redis) -> None:
    """Raises: SettingsError where callers need keys, as the service listens beyond loopback, and none was ever made."""
    if not settings.serves_anonymous and not redis.exists(keys.API_KEYS):
        raise SettingsError(
            f"ADM_HOST: {settings.host} is not loopback and there is no key; adm keys create makes one, "
            "ADM_ALLOW_ANONYMOUS=yes serves anybody"
        )


def usable_files() -> int:
    """Raise the number of files that the process may open to the most that it may set, and return it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    usable = MANY_FILES if most == resource.RLIM_INFINITY else most
    resource.setrlimit(resource.RLIMIT_NOFILE, (usable, most))
    return usable


def listen(settings: Settings) -> socket.socket:
    """The socket to serve on.

    Raises: SettingsError for a port that is in use.
    """
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(f"ADM_PORT: {settings.port} on {settings.host} is in use; set another port") from error
        raise SettingsError(
            f"ADM_HOST, ADM_PORT: cannot listen on {settings.host} port {settings.port}: {error.strerror}"
        ) from error


if __name__ == "__main__":
    main()
