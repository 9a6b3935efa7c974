"""An object store in a local folder or an S3 bucket. `jobs.storage.images` and `jobs.storage.files` define keys."""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from jobs.contract.errors import SettingsError, UnavailableError
from jobs.settings.fields import STORE_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

RETRIES = 3  # of one call, after answers such as 503 and broken connections
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 1.0  # before a retry
LONGEST_PAUSE_SHARE = 0.1  # limits a pause to this share of a call's time limit
# Options that obstore reads from AWS_ variables only if no client options are passed; `bucket` passes some, so it reads
# these itself.
CLIENT_VARIABLES = ("allow_http", "allow_invalid_certificates", "proxy_url", "proxy_ca_certificate")
CLOCK = "clock"  # folder of objects of which only the date is read
BAD_KEY = (ValueError, TypeError)  # obstore raises these when it parses a key
UNFINISHED = re.compile(r"#\d+$")  # suffix of a file that object_store writes before renaming it


Observe = Callable[[str, str, float], None]
"""Gets the operation (put, get, has, delete), outcome (ok, missing, failed) and seconds of each call."""


def unobserved(operation: str, outcome: str, seconds: float) -> None:
    """Ignore the measurement of a call."""


@dataclass(frozen=True)
class StoredObject:
    """One object in a listing of the store."""

    key: str
    last_modified: datetime


class ObjectStore:
    """Reads and writes objects. Every call raises UnavailableError if the store cannot be reached or refuses it.

    A request to a bucket, including its retries, ends within timeout_seconds. A call is one request, except `delete`
    (one request per key) and `list` (one per thousand objects). Invalid keys, such as one that leaves the store
    (a/../../b), are never sent to it: reading finds nothing, and storing is refused.
    """

    def __init__(
        self, address: str, timeout_seconds: float = STORE_TIMEOUT_SECONDS, observe: Observe = unobserved
    ) -> None:
        """Raises: SettingsError for an address that no store can be made of."""
        self._observe = observe
        try:
            self._folder = None if "://" in address else Path(address)
            if self._folder is None:
                self._store: S3Store | LocalStore = bucket(address, timeout_seconds)
            else:
                self._store = LocalStore(self._folder, mkdir=True, automatic_cleanup=True)
        except (BaseError, OSError, ValueError) as error:
            raise SettingsError(f"ADM_STORE: {address} cannot be used: {str(error).partition(chr(10))[0]}") from error

    def put(self, key: str, data: bytes) -> None:
        """Store an object; replaces an object with the same key."""
        try:
            # one request, because each part of a multipart upload would have the timeout of a call
            with self._observed("put"):
                obstore.put(self._store, key, data, use_multipart=False)
        except BAD_KEY as error:
            raise UnavailableError(f"the image store cannot store the key {key[:128]!r}") from error
        except (BaseError, FileNotFoundError) as error:  # the latter if there is no such bucket
            raise UnavailableError(f"the image store did not take an image: {type(error).__name__}") from error

    def get(self, key: str) -> bytes:
        """An object's bytes. Raises: FileNotFoundError if there is none."""
        try:
            with self._observed("get"):
                return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError:
            raise
        except BAD_KEY as error:
            raise FileNotFoundError(key) from error
        except BaseError as error:
            raise UnavailableError(f"the image store cannot be read: {type(error).__name__}") from error

    def has(self, key: str) -> bool:
        try:
            with self._observed("has"):
                obstore.head(self._store, key)
        except (FileNotFoundError, *BAD_KEY):
            return False
        except BaseError as error:
            raise UnavailableError(f"the image store cannot be read: {type(error).__name__}") from error
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; a missing one is not an error."""
        for key in keys:
            try:
                with self._observed("delete"):
                    obstore.delete(self._store, key)
            except (FileNotFoundError, *BAD_KEY):
                continue
            except BaseError as error:
                raise UnavailableError(f"the image store does not delete: {type(error).__name__}") from error

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All objects below a prefix, which is a folder's name."""
        try:
            for chunk in obstore.list(self._store, prefix):
                for each in chunk:
                    yield StoredObject(each["path"], each["last_modified"])
        except BAD_KEY:
            return
        except (BaseError, FileNotFoundError) as error:
            raise UnavailableError(f"the image store cannot be listed: {type(error).__name__}") from error

    def now(self) -> datetime:
        """The time by which the store dates its objects, because the clocks of two machines may be hours apart."""
        key = f"{CLOCK}/{uuid4().hex}"
        self.delete(each.key for each in self.list(CLOCK))  # left by killed processes
        self.put(key, b"-")
        try:
            return obstore.head(self._store, key)["last_modified"]
        except (BaseError, FileNotFoundError) as error:
            raise UnavailableError(f"the image store cannot be read: {type(error).__name__}") from error
        finally:
            self.delete([key])

    @contextmanager
    def _observed(self, operation: str) -> Iterator[None]:
        began, outcome = time.perf_counter(), "failed"
        try:
            yield
            outcome = "ok"
        except FileNotFoundError:
            outcome = "missing"
            raise
        finally:
            self._observe(operation, outcome, time.perf_counter() - began)

    def remove_unfinished(self, before: datetime) -> int:
        """Remove unfinished files of killed writers in a folder, which listings do not show; return their number.

        A bucket has no unfinished objects.
        """
        removed = 0
        try:
            for path in self._folder.rglob("*#*") if self._folder is not None else ():
                if UNFINISHED.search(path.name) and path.stat().st_mtime < before.timestamp():
                    path.unlink(missing_ok=True)
                    removed += 1
        except OSError as error:
            raise UnavailableError(f"the image store does not delete: {error.strerror}") from error
        return removed


def bucket(address: str, timeout_seconds: float) -> S3Store:
    """Return an S3 bucket whose requests end within timeout_seconds, retries included.

    A try takes half of the time at most. The client decides on a retry before its pause, so the last decision comes
    early enough for the longest pause and one more try.
    """
    half, longest_pause = timeout_seconds / 2, min(LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SHARE * timeout_seconds)
    client: ClientConfig = {"timeout": timedelta(seconds=half), "connect_timeout": timedelta(seconds=half)}
    for name in CLIENT_VARIABLES:
        if (value := os.environ.get(f"AWS_{name.upper()}")) is not None:
            client[name] = value  # type: ignore[literal-required] # the names are ClientConfig's
    retries: RetryConfig = {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=half - longest_pause),
        "backoff": {
            "init_backoff": timedelta(seconds=min(FIRST_PAUSE_SECONDS, longest_pause)),
            "max_backoff": timedelta(seconds=longest_pause),
            "base": 2,
        },
    }
    return S3Store.from_url(address, client_options=client, retry_config=retries)
