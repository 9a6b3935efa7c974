"""Workers that tests start share the row shapes that they compare: most run the same networks.

The comparison takes most of such a worker's start. tests/engine compares shapes in every test.
"""

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

FOLDER = "row-shapes"


def share_row_shapes(data: Path) -> None:
    """Let a worker with this data folder use the shapes that workers of earlier tests have compared."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (data / FOLDER).exists():
        (data / FOLDER).symlink_to(_common(), target_is_directory=True)


@cache
def _common() -> Path:
    """A folder of this test process."""
    folder = Path(mkdtemp(prefix="adm-row-shapes-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
