"""Bytes by key: a local folder or an S3 bucket. `jobs.images` and `jobs.files` say what lies there."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from jobs.errors import SettingsError, UnavailableError


@dataclass(frozen=True)
class StoredObject:
    """One object of the store, as a listing shows it."""

    key: str
    last_modified: datetime


class ObjectStore:
    """Every call raises UnavailableError when the store cannot be reached, or does not do as told."""

    def __init__(self, address: str) -> None:
        """Raises: SettingsError for an address that no store can be made of."""
        try:
            if "://" in address:
                self._store = from_url(address)
            else:
                self._store = LocalStore(Path(address), mkdir=True, automatic_cleanup=True)
        except (BaseError, OSError, ValueError) as error:
            raise SettingsError(f"ADM_STORE: {address} cannot be used: {str(error).partition(chr(10))[0]}") from error

    def put(self, key: str, data: bytes) -> None:
        """Store an object, in place of one that has the key."""
        try:
            obstore.put(self._store, key, data)
        except BaseError as error:
            raise UnavailableError(f"the image store did not take an image: {type(error).__name__}") from error

    def get(self, key: str) -> bytes:
        """An object's bytes. Raises: FileNotFoundError when it is gone."""
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError:
            raise
        except BaseError as error:
            raise UnavailableError(f"the image store cannot be read: {type(error).__name__}") from error

    def has(self, key: str) -> bool:
        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        except BaseError as error:
            raise UnavailableError(f"the image store cannot be read: {type(error).__name__}") from error
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; one that has gone already is no error."""
        for key in keys:
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                continue
            except BaseError as error:
                raise UnavailableError(f"the image store does not delete: {type(error).__name__}") from error

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All objects below a prefix, which is a folder's name."""
        try:
            for chunk in obstore.list(self._store, prefix):
                for each in chunk:
                    yield StoredObject(each["path"], each["last_modified"])
        except BaseError as error:
            raise UnavailableError(f"the image store cannot be listed: {type(error).__name__}") from error
