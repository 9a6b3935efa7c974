"""Writes tar shards for webdataset: KEY.jpg and KEY.cls, which has the class."""

import io
import tarfile
from pathlib import Path

from datasets.entries import CLASS_FILE, find_entries
from datasets.image_folder import label_entries
from datasets.listing import LabelsFrom, Skipped
from files.atomic import whole_folder
from pictures.decoding import PictureError, decode

SHARD_IMAGES = 1000


def pack(source: Path, target: Path, labels_from: LabelsFrom = "auto") -> tuple[int, int, list[Skipped]]:
    """Write every picture of a folder or an archive into shards, its bytes unchanged; all of them or none.

    Returns the numbers of pictures and shards, and the skipped files.
    Raises: ValueError if the target is not empty, or the source has no picture.
    """
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target}: is not empty; give a new folder")
    entries, skipped = find_entries(source)
    usable = []
    for entry in entries:
        try:
            with entry.open() as file:
                decode(file)
            usable.append(entry)
        except (PictureError, OSError) as error:
            skipped.append(Skipped(entry.path, str(error)))
    labels = label_entries(source, usable, labels_from)
    if not labels.files:
        raise ValueError(f"{source}: has no pictures")
    opened = {entry.path: entry for entry in usable}
    shards = range(0, len(labels.files), SHARD_IMAGES)
    with whole_folder(target) as unfinished:
        for start in shards:
            part = slice(start, start + SHARD_IMAGES)
            pairs = zip(labels.files[part], labels.labels[part], strict=True)
            with tarfile.open(unfinished / f"shard-{start // SHARD_IMAGES:06d}.tar", "w") as archive:
                for number, (path, label) in enumerate(pairs, start):
                    with opened[path].open() as content:
                        _add(archive, f"{number:08d}{path.suffix.lower()}", content.read())
                    _add(archive, f"{number:08d}{CLASS_FILE}", labels.classes[label].encode())
    return len(labels.files), len(shards), [*skipped, *labels.skipped]


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without times and owners, so that equal pictures give equal bytes
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
