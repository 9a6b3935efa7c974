"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from files.atomic import atomic_write


@pytest.mark.parametrize("many_writers", [False, True])
def test_file_appears_whole_or_not_at_all(tmp_path: Path, many_writers: bool) -> None:
    def cut_short() -> None:
        with atomic_write(tmp_path / "part", many_writers=many_writers) as file:
            file.write(b"half")
            assert not (tmp_path / "part").exists()
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        cut_short()
    assert list(tmp_path.iterdir()) == []
    with atomic_write(tmp_path / "part", many_writers=many_writers) as file:
        file.write(b"whole")
    assert (tmp_path / "part").read_bytes() == b"whole"


def test_former_content_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"former")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"former"
    assert path.read_bytes() == b"new"


def test_what_a_killed_writer_left_is_replaced_by_the_next_write(tmp_path: Path) -> None:
    (tmp_path / ".file.partial").write_bytes(b"half of a killed run")
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"
