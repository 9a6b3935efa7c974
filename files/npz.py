"""Finds an array in an .npz that numpy.savez wrote, without numpy, so that programs can map it or read parts of it."""

import ast
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip's member: the lengths of its name and of its extra field
MAGIC = b"\x93NUMPY"
HEADER_LENGTHS = {1: struct.Struct("<H"), 2: struct.Struct("<I"), 3: struct.Struct("<I")}  # by version of the header
DAMAGE = (KeyError, TypeError, SyntaxError, OverflowError, MemoryError, struct.error)  # errors of malformed headers


@dataclass(frozen=True)
class StoredArray:
    """An array's type, as numpy writes it ("|u1"), its shape, and the offset of its data in the file, in bytes."""

    descr: str
    shape: tuple[int, ...]
    offset: int


def stored_array(path: Path, name: str) -> StoredArray:
    """Find an array in C order in an uncompressed .npz.

    Raises: KeyError for an array that is not there; ValueError for a compressed or damaged one; BadZipFile; OSError.
    """
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed; write it by numpy.savez")
    try:
        return _parsed(path, member.header_offset, name)
    except DAMAGE as error:
        raise ValueError(f"the header of {name} is damaged ({error})") from error


def _parsed(path: Path, header_offset: int, name: str) -> StoredArray:
    with path.open("rb") as file:
        file.seek(header_offset)
        name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        file.seek(header_offset + LOCAL_HEADER.size + name_length + extra_length)
        magic = file.read(8)
        if not magic.startswith(MAGIC):
            raise ValueError(f"{name} is no array")
        length = HEADER_LENGTHS[magic[6]]
        (size,) = length.unpack(file.read(length.size))
        head = ast.literal_eval(file.read(size).decode("latin1"))
        if head["fortran_order"]:
            raise ValueError(f"{name} is in Fortran order")
        return StoredArray(head["descr"], head["shape"], file.tell())
