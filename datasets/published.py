"""Published data sets, with their addresses and checksums."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Published:
    """A data set: the URLs of its files, and the MD5 of each."""

    url: str
    md5: dict[str, str]


PUBLISHED = {
    "fashion-mnist": Published(  # github.com/zalandoresearch/fashion-mnist, README
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
}


def check(path: Path, md5: str) -> None:
    """Check a file. Raises: ValueError if it is not the published one; then it is removed, to be fetched again."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        path.unlink()
        path.with_name(f"{path.name}.json").unlink(missing_ok=True)
        raise ValueError(f"{path}: is not the published file (MD5 {found}, not {md5}); it was removed")
