"""API keys: their form, their records in Redis, and the lookup of a key's caller.

A key has 256 random bits, so its plain SHA-256 is stored: brute force is impossible even with a fast hash, and a slow
hash would delay every request.
"""

import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import NamedTuple, cast
from uuid import uuid4

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.client import Pipeline as RedisPipeline
from redis.client import Redis

from jobs.contract.caller import CALLER_ID, KEY, Caller, Role
from jobs.contract.errors import KeyringError
from jobs.redis import keys
from jobs.redis.clock import RedisClock

log = structlog.get_logger("jobs.callers.keyring")

NEEDED = "keys-needed"  # file in the data folder that shows that keys existed, if Redis loses them
IN_FORCE_SECONDS = 0.2  # greatest age of a keyring that checks a request; then a change is in force everywhere
SECRET_BYTES = 32
NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$"
NO_HASH = "0" * 64  # compared with a key of an unknown caller, so that this takes as long


class KeyRecord(BaseModel):
    """The record of a key in Redis. It is kept after a revocation: jobs refer to it, and it shows that keys exist."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(pattern=CALLER_ID.pattern)
    name: str = Field(pattern=NAME)
    role: Role
    weight: float = Field(default=1.0, ge=0.01, le=100)
    sha256: str
    created_at: float
    rotated_at: float | None = None
    revoked_at: float | None = None

    @property
    def caller(self) -> Caller:
        return Caller(self.id, self.role, self.weight, self.sha256)


class NewKey(NamedTuple):
    """A new key; it is shown only this once."""

    key: str
    record: KeyRecord


class Keyring:
    """The keys of one Redis, as of one read."""

    def __init__(self, records: Mapping[str, KeyRecord], *, exist: bool) -> None:
        """`exist`: whether there is any key, including revoked and unreadable ones."""
        self._records, self.exist = records, exist
        self._callers = {each.id: each.caller for each in records.values()}  # made once, not for each request

    def __len__(self) -> int:
        return sum(each.revoked_at is None for each in self._records.values())

    @property
    def records(self) -> list[KeyRecord]:
        """Every key, including revoked ones, because their callers may have jobs."""
        return list(self._records.values())

    def name_of(self, caller: Caller) -> str | None:
        """The name of a caller's key; None for a caller without one."""
        record = self._records.get(caller.id)
        return None if record is None else record.name

    def caller_of(self, key: str) -> Caller | None:
        """The caller of a key; None for a wrong or revoked one. Takes the same time in all cases."""
        found = KEY.fullmatch(key)
        record = self._records.get(found[1]) if found is not None else None
        expected = NO_HASH if record is None or record.revoked_at is not None else record.sha256
        is_right = hmac.compare_digest(hash_of(key), expected)
        return self._callers[record.id] if is_right and record is not None else None

    def still_opens(self, caller: Caller) -> bool:
        """Return whether a caller's key is still in force; without one, whether there are still no keys."""
        if not caller.id:
            return not self.exist
        record = self._records.get(caller.id)
        return record is not None and record.revoked_at is None and record.sha256 == caller.key_sha256


def read_keyring(fields: Mapping[bytes, bytes] | None) -> Keyring:
    """Parse the hash `keys.API_KEYS`. fields: None if that key is not a hash; the keyring then accepts nobody."""
    records = {each.id: each for each in records_of(fields or {})}
    return Keyring(records, exist=fields is None or bool(fields))


def records_of(fields: Mapping[bytes, bytes]) -> list[KeyRecord]:
    """All readable keys, oldest first."""
    found = []
    for name, text in fields.items():
        try:
            found.append(KeyRecord.model_validate_json(text))
        except ValidationError as error:
            log.error("unreadable_key", id=name.decode(errors="replace"), wrong_fields=error.error_count())
    return sorted(found, key=lambda each: each.created_at)


def hash_of(key: str) -> str:
    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class KeyStore:
    """Makes and revokes keys. Each change is in force at every service when the call returns."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._now = RedisClock(redis).now

    def records(self) -> list[KeyRecord]:
        """All keys, including revoked ones, oldest first."""
        return records_of(cast(dict[bytes, bytes], self._redis.hgetall(keys.API_KEYS)))

    def create(self, name: str, role: Role, weight: float = 1.0) -> NewKey:
        """Make a key. Raises: KeyringError for a name that is taken or has characters that names cannot have."""
        if not re.fullmatch(NAME, name):
            raise KeyringError(
                f"--name: {name!r} must have 1 to 64 letters, digits, spaces or ._@-, and begin with a letter or digit"
            )
        caller_id, now = uuid4().hex[:12], self._now()
        made = new_key(caller_id)

        def decide(present: list[KeyRecord]) -> KeyRecord:
            if any(each.name == name and each.revoked_at is None for each in present):
                raise KeyringError(f"--name: a key named {name!r} exists; adm keys rotate replaces it")
            return KeyRecord(id=caller_id, name=name, role=role, weight=weight, sha256=hash_of(made), created_at=now)

        return NewKey(made, self._write(decide))

    def revoke(self, key: str) -> KeyRecord:
        """Revoke a key, by its id or name. Raises: KeyringError for an unknown one."""
        now = self._now()
        return self._write(lambda present: named(present, key).model_copy(update={"revoked_at": now, "sha256": ""}))

    def rotate(self, key: str) -> NewKey:
        """Replace a caller's key, by its id or name; the old key is invalid at once. Raises: KeyringError."""
        now = self._now()
        made = ""

        def decide(present: list[KeyRecord]) -> KeyRecord:
            nonlocal made
            record = named(present, key)
            made = new_key(record.id)
            return record.model_copy(update={"sha256": hash_of(made), "rotated_at": now})

        record = self._write(decide)
        return NewKey(made, record)

    def _write(self, decide: Callable[[list[KeyRecord]], KeyRecord]) -> KeyRecord:
        """Write one record in a transaction; return when no service uses an older keyring any more."""

        decided: list[KeyRecord] = []

        def write(pipe: RedisPipeline) -> None:
            decided[:] = [decide(records_of(cast(dict[bytes, bytes], pipe.hgetall(keys.API_KEYS))))]
            pipe.multi()
            pipe.hset(keys.API_KEYS, decided[0].id, decided[0].model_dump_json())
            pipe.set(keys.API_KEYS_VERSION, uuid4().hex)

        self._redis.transaction(write, keys.API_KEYS)
        time.sleep(IN_FORCE_SECONDS)
        return decided[0]


def new_key(caller_id: str) -> str:
    return f"adm_{caller_id}_{secrets.token_urlsafe(SECRET_BYTES)}"


def named(present: list[KeyRecord], key: str) -> KeyRecord:
    """The key in force that has this id or name. Raises: KeyringError."""
    for each in present:
        if key in (each.id, each.name) and each.revoked_at is None:
            return each
    raise KeyringError(f"{key!r}: no such key; adm keys list shows all")
