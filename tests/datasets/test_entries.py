"""Archives and shards give the same pictures as a folder; the checksums of a published set are verified."""

import bz2
import gzip
import hashlib
import lzma
import resource
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from datasets import published
from datasets.image_folder import read_folder
from datasets.pictures import open_pictures
from datasets.shards import pack
from datasets.survey import survey


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(6):
        name = ("cat", "dog", "eel")[index % 3]
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20, 14), 80).save(tmp_path / "set" / name / f"{index}.png")
    (tmp_path / "set" / "notes.txt").write_text("none")
    return tmp_path / "set"


def assert_same(one: Path, other: Path) -> None:
    a, b = read_folder(one, 8), read_folder(other, 8)
    assert a.labels.classes == b.labels.classes
    assert a.labels.labels == b.labels.labels
    assert torch.equal(a.images, b.images)


def test_zip_file_is_read_as_its_folder(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/._0.png", "left behind")
    assert_same(tmp_path / "set.zip", folder)


def test_packed_shards_are_read_as_their_folder(folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    result = CliRunner().invoke(app, ["data", "pack", str(folder), str(shards)])
    assert (result.exit_code, result.output) == (
        0,
        f"left out: {folder}/notes.txt: is not a readable picture\n{shards}: 6 pictures in 1 shard\n",
    )
    assert_same(shards, folder)
    assert_same(shards / "shard-000000.tar", folder)
    result = CliRunner().invoke(app, ["data", "pack", str(folder), str(shards)])
    assert (result.exit_code, result.output) == (1, f"adm: {shards}: is not empty; give a new folder\n")


def test_packing_that_fills_the_disk_leaves_no_smaller_set(folder: Path, tmp_path: Path) -> None:
    """A tar file that ends between two of its files is read as if it were whole."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = set(tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            pack(folder, tmp_path / "shards")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert set(tmp_path.iterdir()) == before
    assert pack(folder, tmp_path / "shards")[:2] == (6, 1)


def test_packing_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        CliRunner().invoke(app, ["data", "pack", str(folder), str(tmp_path / name)])
    one, two = ((tmp_path / name / "shard-000000.tar").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("name", ["cut.zip", "cut.tar"])
def test_damaged_archive_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no archive at all" * 100)
    result = CliRunner().invoke(app, ["data", "inspect", str(tmp_path / name)])
    assert result.exit_code == 1
    assert f"{tmp_path / name}: the archive is damaged or cut off" in result.output
    assert result.output.count("\n") == 1


def flipped(content: bytearray, place: int) -> None:
    content[place] ^= 0xFF


def encrypted(content: bytearray, place: int) -> None:
    """Set the flag of the first file in its own header and in the archive's directory."""
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1


def of_unknown_compression(content: bytearray, place: int) -> None:
    content[8] = content[content.index(b"PK\x01\x02") + 10] = 97


SPOILINGS = [
    (zipfile.ZIP_STORED, flipped, "damaged in the archive (Bad CRC-32"),
    (zipfile.ZIP_DEFLATED, flipped, "damaged in the archive ("),
    (zipfile.ZIP_STORED, encrypted, "is encrypted"),
    (zipfile.ZIP_STORED, of_unknown_compression, "compression"),
]


@pytest.fixture(params=SPOILINGS, ids=["stored", "deflated", "encrypted", "unknown"])
def spoiled_zip(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> tuple[Path, str]:
    """A zip file of six pictures, of which the first cannot be read, and the reason."""
    compression, spoil, reason = request.param
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    content = bytearray(path.read_bytes())
    spoil(content, 120)  # within the first picture
    path.write_bytes(content)
    return path, reason


def test_file_that_a_zip_file_cannot_give_is_skipped_by_name_by_every_reader(
    spoiled_zip: tuple[Path, str], tmp_path: Path
) -> None:
    path, reason = spoiled_zip
    pictures = open_pictures(path, 0)
    assert sum(map(len, pictures.batches)) == 5
    _, _, packed = pack(path, tmp_path / "shards")
    for skipped in (pictures.skipped, survey(path).skipped, read_folder(path, 8).skipped, packed):
        ((file, why),) = skipped
        assert file == path / "cat" / "0.png"
        assert reason in why


def test_files_named_from_the_root_are_read_below_their_archive(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "root.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.writestr(f"/{file.relative_to(folder)}", file.read_bytes())
    assert_same(tmp_path / "root.zip", folder)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_tar_file_is_refused_as_such(
    folder: Path, tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(folder, "set")
    (tmp_path / "set.tar").write_bytes(compress((tmp_path / "set.tar").read_bytes()))
    with pytest.raises(ValueError, match=r"set\.tar: is compressed, .* decompress it first$"):
        read_folder(tmp_path / "set.tar", 8)


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server with the four files of the MNIST family, with two images each."""
    files = tmp_path / "published"
    files.mkdir()
    for part in ("train", "t10k"):
        images = struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28) + bytes(range(256)) * 6 + bytes(32)
        (files / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, mtime=0))
        labels = struct.pack(">HBBI", 0, 8, 1, 2) + bytes([0, 9])
        (files / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels, mtime=0))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(files))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", files
        server.shutdown()
        thread.join()


def test_fetched_set_is_checked_and_read(
    publisher: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, files = publisher
    sums = {each.name: hashlib.md5(each.read_bytes(), usedforsecurity=False).hexdigest() for each in files.iterdir()}
    monkeypatch.setitem(published.PUBLISHED, "fashion-mnist", published.Published("", sums))
    arguments = ["data", "fetch", "fashion-mnist", "--to", str(tmp_path / "fashion-mnist"), "--from", url]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(
        app, ["data", "inspect", str(tmp_path / "fashion-mnist"), "--sheet", str(tmp_path / "s.png")]
    )
    assert "4 images, 2 classes" in result.output
    monkeypatch.setitem(published.PUBLISHED, "fashion-mnist", published.Published("", dict.fromkeys(sums, "0" * 32)))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "is not the published file" in result.output
