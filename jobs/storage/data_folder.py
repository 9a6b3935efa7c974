"""The data folder, whose uploads, images and Redis log only the user who runs the programs may read."""

import os

from jobs.contract.errors import SettingsError
from jobs.settings import Settings

OURS = ("run", "redis", "images", "compiled")  # folders that earlier versions left readable


def keep_private() -> None:
    """Let only this user read what this process and its children make from now on."""
    os.umask(0o077)


def open_data_folder(settings: Settings) -> None:
    """Make the folder of pid files, locks and the socket, and remove other users' access to the data folder.

    Raises: SettingsError if the folder cannot be used.
    """
    try:
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        for folder in (settings.data / name for name in OURS):
            if folder.is_dir() and folder.stat().st_uid == os.geteuid():
                folder.chmod(0o700)
    except OSError as error:
        raise SettingsError(f"ADM_DATA: {settings.data} cannot be used: {error.strerror}") from error
    if not os.access(settings.run_dir, os.W_OK | os.X_OK):
        raise SettingsError(f"ADM_DATA: {settings.data} cannot be used: it is not writable")
