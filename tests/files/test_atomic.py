"""Files that are written whole or not at all."""

import os
from pathlib import Path

import pytest

from files.atomic import atomic_write, write_text


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


def test_text_replaces_what_a_link_points_to_and_escapes_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("report.html")
    write_text(tmp_path / "link", os.fsdecode(b"a\xff.png \xc3\xbc"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "report.html").read_bytes() == b"a\\udcff.png \xc3\xbc"


def test_text_is_written_to_a_pipe(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    write_text(Path(f"/dev/fd/{writer}"), "report")
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"report"


def test_former_content_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"former")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"former"
    assert path.read_bytes() == b"new"


def test_what_a_killed_writer_left_is_replaced_by_the_next_write(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").write_bytes(b"half of a killed run")
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_durable_content_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "file", []

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)  # the system's, whose effect only a power cut would show
    with atomic_write(path, durable=True) as file:
        file.write(b"whole")
    assert synced == [(5, False)]


def test_processes_that_write_at_once_leave_one_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    with atomic_write(path, many_writers=True) as first:
        first.write(b"fi")
        monkeypatch.setattr(os, "getpid", lambda: 1)  # the system's: the second writer is another process
        with atomic_write(path, many_writers=True) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b"rst")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
