import shutil
from pathlib import Path

import pytest

from tests.models.samples import write_stack


@pytest.fixture(scope="session")
def pristine_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stack(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def stack_folder(pristine_stack: Path, tmp_path: Path) -> Path:
    """A stack's folder that the test may damage."""
    return Path(shutil.copytree(pristine_stack, tmp_path / "tiny"))
