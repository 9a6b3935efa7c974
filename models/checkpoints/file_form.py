"""Detects the form of a weights file from its first bytes, because files may be renamed, truncated or foreign."""

import contextlib
import re
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

HEAD_BYTES = 512  # a tar's magic number is at byte 257
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save's first pickle before torch 1.6: one number
TAR_MEMBERS = {"sys_info", "pickle", "storages", "tensors"}  # of torch.save's form before torch 0.1.10
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)")
DAMAGE = (ValueError, NotImplementedError, OverflowError, struct.error)  # the standard library's, for malformed bytes
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z"}


class WeightsError(Exception):
    """Weights that cannot be used. `subject` is the file or the stack, `reason` what is wrong with it."""

    def __init__(self, subject: str, reason: str) -> None:
        super().__init__(f"{subject}: {reason}")
        self.subject, self.reason = subject, reason


class ContentError(ValueError):
    """The content of a file cannot be used; `named` adds the file's name."""


class Form(Enum):
    """The forms that can be read."""

    SAFETENSORS = "safetensors"
    TORCH_ZIP = "a zip of torch.save"
    TORCH_LEGACY = "torch.save before torch 1.6"
    INDEX = "an index of shards"


def shown(path: Path) -> str:
    """A file's name with its folder, for messages, because every stack has a file of the same name."""
    return str(Path(*path.parts[-2:]))


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Add a file's name to errors about its content."""
    try:
        yield
    except ContentError as error:
        raise WeightsError(shown(path), str(error)) from error


def refuse_shard(path: Path) -> None:
    """Raise WeightsError for a file whose name marks it as a shard of a network."""
    if (shard := SHARD.fullmatch(path.name)) and int(shard[3]) > 1:
        index = f"{shard[1]}{shard[4]}.index.json"
        raise WeightsError(shown(path), f"is shard {int(shard[2])} of {int(shard[3])}; give their index, {index}")


def form_of(path: Path) -> Form:
    """The form of a weights file. Raises: WeightsError with the kind of any other file and a remedy."""
    if path.is_dir():
        raise WeightsError(f"{path}", "is a folder; give a file in it")
    if not path.is_file():
        raise WeightsError(f"{path}", "there is no such weights file")
    if path.name.endswith(".index.json"):
        return Form.INDEX
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        found = _form(path, head)
    except OSError as error:
        raise WeightsError(shown(path), f"cannot be read: {error.strerror or error}") from error
    if isinstance(found, Form):
        return found
    raise WeightsError(shown(path), found)


def _form(path: Path, head: bytes) -> Form | str:
    """The form, or a text that describes the file's other kind."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        return "is empty; fetch it again"
    if head.startswith(LEGACY_MAGIC):
        return Form.TORCH_LEGACY
    if head.startswith(b"PK"):
        return _zip_form(path)
    if text.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS in place of the file; run git lfs pull where it came from"
    if text.startswith(b"<"):
        return "is a web page in place of the file; fetch it from the address of the file itself"
    if head[257:262] == b"ustar":
        return _tar_form(path)
    if compressed := next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None):
        return f"is compressed by {compressed}; unpack it"
    if head[8:9] == b"{":
        return Form.SAFETENSORS
    if re.match(rb"\x80[\x02-\x05]", head):
        return "is a pickle that torch.save did not write, and may contain code; save its state_dict() with torch.save"
    if text.startswith((b"{", b"[")):
        return "is JSON, without tensors"
    return f"is no weights file: it begins with {head[:8]!r}, as neither torch.save nor safetensors does"


def _zip_form(path: Path) -> Form | str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except zipfile.BadZipFile:
        return f"is cut off after {path.stat().st_size:,} bytes: the end of the zip is missing; fetch it again"
    except DAMAGE as error:
        return f"is a damaged zip ({type(error).__name__}); fetch it again"
    if "constants.pkl" in names:
        return "is a TorchScript program; save its state_dict() with torch.save"
    if "data.pkl" in names:
        return Form.TORCH_ZIP
    if any(name.endswith(".npy") for name in names):
        return "is an .npz of numpy arrays, such as samples or statistics, without a network's weights"
    return "is a zip that torch.save did not write; unpack it and give the weights file in it"


def _tar_form(path: Path) -> str:
    try:
        with tarfile.open(path) as archive:
            members = set(archive.getnames())
    except (tarfile.TarError, EOFError, *DAMAGE):
        members = set()
    if members >= TAR_MEMBERS:
        return "is of torch.save's tar form (before torch 0.1.10), which cannot be read; save it again with a new torch"
    return "is a tar archive; unpack it and give the weights file in it"
