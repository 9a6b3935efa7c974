"""The settings of all programs, read from variables that begin with ADM_, and values derived from them."""

import os
import re
import socket
from pathlib import Path
from typing import Self
from urllib.parse import quote

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from pydantic_settings.sources import EnvSettingsSource

from jobs.contract.errors import SettingsError
from jobs.settings.environment import SettingSource, masked, refuse_unknown, variable
from jobs.settings.fields import MAX_WORKER_NAME, Fields
from jobs.settings.setting_types import key_of

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
MAX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7) is 108 with its closing zero


class Settings(Fields):
    """The fields with the values of an environment, and values that are derived from several of them."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises: SettingsError, one line, for an unknown ADM_ variable or a wrong value.
        """
        refuse_unknown(os.environ, [variable(name) for name in cls.model_fields])
        try:
            settings = cls()
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise SettingsError(f"{variable(str(first['loc'][0]))}: {first['msg']}") from error
        if settings.heartbeat_seconds * 2 > settings.lease_seconds:
            raise SettingsError("ADM_HEARTBEAT_SECONDS: must be at most half of ADM_LEASE_SECONDS")
        _ = settings.redis_address  # a path too long for a socket must fail at start
        return settings

    @property
    def webhook_keys(self) -> tuple[bytes, ...]:
        """The keys that sign webhooks; without keys there are no webhooks."""
        return (
            () if self.webhook_secret is None else tuple(map(key_of, self.webhook_secret.get_secret_value().split(",")))
        )

    @property
    def serves_anonymous(self) -> bool:
        """Return whether callers need no key as long as no keys exist."""
        return self.allow_anonymous or self.host in LOOPBACK_HOSTS

    @property
    def run_dir(self) -> Path:
        """The folder of pid files, locks and the socket."""
        return self.data / "run"

    @property
    def redis_address(self) -> str:
        """URL of the Redis server: the one given, or the embedded server's socket.

        Raises: SettingsError if the socket's path is longer than the system allows, or not UTF-8.
        """
        if self.redis_url is not None:
            return self.redis_url
        path = self.socket_path
        try:
            quoted = quote(str(path), errors="strict")
        except UnicodeEncodeError as error:
            raise SettingsError(f"ADM_DATA: {str(path)!r} is not UTF-8; use a folder with another name") from error
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise SettingsError(
                f"ADM_DATA: the socket {path} is longer than {MAX_SOCKET_PATH_BYTES} bytes; use a shorter folder"
            )
        return f"unix://{quoted}"

    @property
    def socket_path(self) -> Path:
        """The embedded server's socket."""
        return (self.run_dir / "redis.sock").absolute()

    @property
    def store_address(self) -> str:
        """The image store: a folder, or an s3:// URL."""
        return self.store if self.store is not None else str((self.data / "images").absolute())

    def name_of_worker(self, device: str) -> str:
        """The worker's name: the one that is set, or its device's, such as "cuda-0".

        The host's name is prefixed if workers of other machines may use the same Redis. Names must differ there: a
        worker that starts recovers the jobs of its own name, and the lock on a name is valid on one machine only.
        """
        if self.worker_name is not None:
            return self.worker_name
        if self.redis_url is None:
            return device
        host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[: MAX_WORKER_NAME - len(device) - 1]
        return f"{host}-{device}"

    def sources(self) -> list[SettingSource]:
        """Every setting with its value and where it came from; passwords in addresses are masked."""
        given = EnvSettingsSource(type(self))()
        return [
            SettingSource(
                variable(name),
                masked(getattr(self, name)),
                "environment" if name in given else "default",
                str(field.description),
            )
            for name, field in type(self).model_fields.items()
        ]
