"""The program `adm service`, which listens and serves until a stop signal."""

import contextlib
import errno
import socket
import sys

import structlog
from redis import Redis
from redis.exceptions import RedisError

from jobs import logs
from jobs.contract.errors import SETTINGS_STATUS, SettingsError
from jobs.redis import keys
from jobs.redis.server import check_server, connect_redis
from jobs.settings import Settings
from jobs.storage.data_folder import keep_private
from jobs.storage.images import ImageStore
from service.process_slot import ALONE
from service.processes import NoStartError, Processes
from service.serving import serve
from tracing import recording
from tracing.recording import TracingError

BACKLOG = 2048


def main() -> None:
    """Serve with the environment's settings; exit with one line and SETTINGS_STATUS if they are wrong."""
    keep_private()
    try:
        settings = Settings.load()
        recording.check()
        ImageStore(settings.store_address)  # fails here, in one line, if the store cannot be used
        with connect_redis(settings.redis_address) as redis, contextlib.suppress(RedisError):  # Redis may start later
            check_server(redis)
            refuse_to_serve_nobody(settings, redis)
        listener = listen(settings)
    except (SettingsError, TracingError) as error:
        print(f"adm service: {error}", file=sys.stderr)
        sys.exit(SETTINGS_STATUS)
    logs.configure(settings)
    host, port = listener.getsockname()[:2]
    structlog.get_logger("service").info("listening", host=host, port=port, processes=settings.service_processes)
    if settings.service_processes == 1:
        serve(settings, listener, ALONE)
        return
    try:
        Processes(settings, listener).run()
    except NoStartError as error:
        sys.exit(f"adm service: {error}")


def refuse_to_serve_nobody(settings: Settings, redis: Redis) -> None:
    """Refuse to start beyond loopback if callers need keys but no key exists. Raises: SettingsError."""
    if not settings.serves_anonymous and not redis.exists(keys.API_KEYS):
        raise SettingsError(
            f"ADM_HOST: {settings.host} is not loopback and there is no key; adm keys create makes one, "
            "ADM_ALLOW_ANONYMOUS=yes serves anybody"
        )


def listen(settings: Settings) -> socket.socket:
    """Open the socket to serve on. Raises: SettingsError if the address or the port cannot be used."""
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
