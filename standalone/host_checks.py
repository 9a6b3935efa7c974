"""Checks of this machine for `adm doctor`: versions, data folder, image store, port, open files."""

import http.client
import os
import re
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from uuid import uuid4

from jobs.contract.errors import SettingsError, UnavailableError
from jobs.settings import Settings
from jobs.settings.environment import masked
from jobs.storage.store import ObjectStore
from standalone.embedded import PROBE_TIMEOUT_SECONDS, local_host, with_free_port
from standalone.supervisor import StartError
from vocabulary.counts import counted
from vocabulary.doctor_finding import Finding

SCRATCH_FOLDER = "doctor"  # of the store; upkeep and listings do not read it
ROOM_BYTES = 1 << 30  # thousands of the demo's images, or one compiled stack with its log
TORCH = re.compile(r"torch==([^;\s]+)")


def check_python() -> Finding:
    """Check whether the project supports this Python version; pip checks only at installation."""
    here, needed = ".".join(map(str, sys.version_info[:3])), metadata("adm-serve")["Requires-Python"]
    least = tuple(map(int, needed.removeprefix(">=").split(".")))
    if sys.version_info[: len(least)] < least:
        return Finding("python", "fault", f"{here}; {needed} is needed: make install PYTHON=...")
    return Finding("python", "ok", f"{here}, {sys.executable}")


def check_torch() -> Finding:
    """Check whether torch is the pinned version: other versions round differently, and give other bytes."""
    pinned = next(filter(None, map(TORCH.match, requires("adm-serve") or ())), None)
    assert pinned is not None  # by pyproject.toml
    try:
        installed = version("torch")
    except PackageNotFoundError:
        text = f"is not installed: fine for a service; a worker needs torch=={pinned[1]} (make install)"
        return Finding("torch", "warning", text)
    if installed.partition("+")[0] != pinned[1]:
        return Finding("torch", "fault", f"{installed} is installed, {pinned[1]} is needed: make install")
    return Finding("torch", "ok", installed)


def check_data(settings: Settings) -> Finding:
    """Check whether the data folder can be written, or made, and how much room its disk has."""
    folder = nearest_folder(settings.data)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        text = f"{settings.data} cannot be written by this user: correct ADM_DATA, or the rights of {folder}"
        return Finding("data", "fault", text)
    free = shutil.disk_usage(folder).free
    free_space = f"{settings.data}: {free / (1 << 30):.1f} GiB free"
    if free < ROOM_BYTES:
        return Finding("data", "warning", f"{free_space}; make room, or set ADM_DATA to a folder on another disk")
    return Finding("data", "ok", free_space)


def nearest_folder(path: Path) -> Path:
    """Return the path itself if it exists, or else its closest existing parent."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def check_store(settings: Settings) -> Finding:
    """Write, read and delete a small object in the image store. A missing folder is not made."""
    address, shown = settings.store_address, masked(settings.store_address)
    if "://" not in address and not Path(address).exists():
        parent = nearest_folder(Path(address))
        if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
            return Finding("store", "ok", f"{shown} is not there yet; the first start makes it")
        return Finding("store", "fault", f"{shown} cannot be made in {parent}: correct ADM_STORE or ADM_DATA")
    key, data = f"{SCRATCH_FOLDER}/{uuid4().hex}", os.urandom(64)
    started = time.monotonic()
    try:
        store = ObjectStore(address, settings.store_timeout_seconds)
        store.put(key, data)
        found = store.get(key)
        store.delete([key])
    except (SettingsError, UnavailableError, FileNotFoundError) as error:
        reason = str(error).replace(address, shown)
        return Finding(
            "store", "fault", f"{shown}: {reason}; check ADM_STORE, its rights and, for s3://, AWS_ variables"
        )
    if found != data:
        return Finding("store", "fault", f"{shown} returns other bytes than were written: use another ADM_STORE")
    milliseconds = (time.monotonic() - started) * 1000
    return Finding("store", "ok", f"{shown}: wrote, read and deleted an object in {milliseconds:.0f} ms")


def check_port(settings: Settings) -> Finding:
    """Check whether the service can listen on its port, or already does."""
    try:
        with_free_port(settings)
    except StartError as error:
        if not service_lives(settings):
            return Finding("port", "fault", str(error))
        if supervisor_runs(settings):
            return Finding("port", "ok", f"{settings.port} on {settings.host}: the service of this ADM_DATA has it")
        text = f"port {settings.port} on {settings.host} is that of another ADM service: set ADM_PORT to start one more"
        return Finding("port", "warning", text)
    which = f"{settings.port} on {settings.host} is free" if settings.port else "any free one will be taken"
    return Finding("port", "ok", which)


def service_lives(settings: Settings) -> bool:
    """Check whether an ADM service answers on the port."""
    connection = http.client.HTTPConnection(local_host(settings), settings.port, timeout=PROBE_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().read(64) == b'{"status":"ok"}'
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def supervisor_runs(settings: Settings) -> bool:
    """Check whether this data folder's supervisor runs a service, by its pid file."""
    try:
        os.kill(int((settings.run_dir / "service.pid").read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def check_files(settings: Settings, usable: int, others: int) -> Finding:
    """Check whether `usable` files suffice for all connections that the settings allow and for `others` beside them."""
    needed = settings.max_connections + others
    if usable < needed:
        text = f"{usable} at most, for {needed}: the service takes {counted(max(usable - others, 0), 'connection')}"
        return Finding("open files", "warning", f"{text}; raise ulimit -Hn, or lower ADM_MAX_CONNECTIONS")
    text = f"{usable} at most, {needed} needed for ADM_MAX_CONNECTIONS={settings.max_connections}"
    return Finding("open files", "ok", text)
