"""API keys: how they are written, how they lie in Redis, and whose a key is.

A key holds 256 random bits, so it is stored as its plain SHA-256: nobody can try enough keys for a slow hash to matter,
and a slow one would cost every request its time.
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
from redis.client import Pipeline, Redis

from jobs.callers.caller import KEY, Caller, Role
from jobs.contract.errors import KeyringError
from jobs.queue import keys
from jobs.queue.clock import RedisClock

log = structlog.get_logger("jobs.keyring")

NEEDED = "keys-needed"  # the file in the data folder that says that there were keys, should Redis lose them
IN_FORCE_SECONDS = 0.2  # age of a keyring at most when a request is judged by it: then a change is in force everywhere
CALLER_ID = re.compile(r"[0-9a-f]{12}")
SECRET_BYTES = 32
NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}$"
NO_HASH = "0" * 64  # compared with where a key's caller is unknown, so that both take as long


class KeyRecord(BaseModel):
    """What Redis keeps of a key. A revoked one stays: it names the owner of jobs, and that keys are needed."""

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
    """A key that was just made; the only time that it is shown."""

    key: str
    record: KeyRecord


class Keyring:
    """The keys of one Redis as they were read."""

    def __init__(self, records: Mapping[str, KeyRecord], *, exist: bool) -> None:
        """`exist`: whether there is any key, a revoked or an unreadable one too."""
        self._records, self.exist = records, exist

    def __len__(self) -> int:
        return sum(each.revoked_at is None for each in self._records.values())

    @property
    def records(self) -> list[KeyRecord]:
        """Every key, revoked ones too: their callers may have jobs."""
        return list(self._records.values())

    def name_of(self, caller: Caller) -> str | None:
        """What a caller's key is called; None for a caller without one."""
        record = self._records.get(caller.id)
        return None if record is None else record.name

    def caller_of(self, key: str) -> Caller | None:
        """The caller whose key it is; None for one that is wrong or revoked. Takes as long for either."""
        found = KEY.fullmatch(key)
        record = self._records.get(found[1]) if found is not None else None
        expected = NO_HASH if record is None or record.revoked_at is not None else record.sha256
        is_right = hmac.compare_digest(hash_of(key), expected)
        return record.caller if is_right and record is not None else None

    def still_opens(self, caller: Caller) -> bool:
        """Whether the key that a caller has shown is in force; without keys, whether there still are none."""
        if not caller.id:
            return not self.exist
        record = self._records.get(caller.id)
        return record is not None and record.revoked_at is None and record.sha256 == caller.key_sha256


def read_keyring(fields: Mapping[bytes, bytes] | None) -> Keyring:
    """The keyring of the hash `keys.API_KEYS`; None, where that is no hash, is one that nobody passes."""
    records = {each.id: each for each in records_of(fields or {})}
    return Keyring(records, exist=fields is None or bool(fields))


def records_of(fields: Mapping[bytes, bytes]) -> list[KeyRecord]:
    """Every key that can be read, oldest first."""
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
        """Every key, also those revoked, oldest first."""
        return records_of(cast(dict[bytes, bytes], self._redis.hgetall(keys.API_KEYS)))

    def create(self, name: str, role: Role, weight: float = 1.0) -> NewKey:
        """Make a key. Raises: KeyringError for a name that is taken or has other characters than names have."""
        if not re.fullmatch(NAME, name):
            raise KeyringError(f"--name: {name!r} must have 1 to 64 letters, digits, spaces or ._@-, a letter first")
        caller_id, now = uuid4().hex[:12], self._now()
        made = new_key(caller_id)

        def decide(present: list[KeyRecord]) -> KeyRecord:
            if any(each.name == name and each.revoked_at is None for each in present):
                raise KeyringError(f"--name: there is a key named {name!r}; adm keys rotate gives it a new one")
            return KeyRecord(id=caller_id, name=name, role=role, weight=weight, sha256=hash_of(made), created_at=now)

        return NewKey(made, self._write(decide))

    def revoke(self, key: str) -> KeyRecord:
        """Let a key, by its id or name, open nothing any more. Raises: KeyringError for an unknown one."""
        now = self._now()
        return self._write(lambda present: named(present, key).model_copy(update={"revoked_at": now, "sha256": ""}))

    def rotate(self, key: str) -> NewKey:
        """Give a caller, by its id or name, another key; the present one opens nothing. Raises: KeyringError."""
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
        """Write one record in a transaction, and return when no service judges by an older keyring any more."""

        decided: list[KeyRecord] = []

        def write(pipe: Pipeline) -> None:
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
