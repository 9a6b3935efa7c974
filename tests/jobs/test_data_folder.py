import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.contract.errors import SettingsError
from jobs.settings import Settings
from jobs.storage.data_folder import open_data_folder

# In a process of its own, as it changes what the process's files look like from then on.
PROGRAM = """
from pathlib import Path
import sys
from jobs.storage.data_folder import keep_private, open_data_folder
from jobs.storage.images import ImageStore
from jobs.settings import Settings

keep_private()
settings = Settings(data=sys.argv[1])
open_data_folder(settings)
ImageStore(settings.store_address).objects.put("jobs/a/b/0.png", b"")
(settings.data / "log").write_text("")
"""


@pytest.mark.slow
def test_what_programs_write_is_for_their_user_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    subprocess.run([sys.executable, "-c", PROGRAM, str(data)], check=True)
    assert {path.name for path in data.rglob("*")} >= {"run", "images", "0.png", "log"}
    assert not [each for each in (data, *data.rglob("*")) if stat.S_IMODE(each.stat().st_mode) & 0o077]


def test_folders_that_were_left_readable_are_closed_and_others_left_alone(tmp_path: Path) -> None:
    for name in ("redis", "images", "others", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)  # whatever umask an earlier test left
    open_data_folder(Settings(data=tmp_path))
    modes = {each.name: oct(stat.S_IMODE(each.stat().st_mode)) for each in tmp_path.iterdir()}
    assert modes == {"redis": "0o700", "images": "0o700", "others": "0o755", "run": "0o700"}


def test_folder_that_cannot_be_used_is_a_setting_that_cannot_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"^ADM_DATA: .*/file/data cannot be used: Not a directory$"):
        open_data_folder(Settings(data=tmp_path / "file/data"))
