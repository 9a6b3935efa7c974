"""Writes the official .npz as a stream, in any size: the form of guided-diffusion's scripts and evaluator.

A .npz is an uncompressed zip of .npy files, and a .npy is a short header before the bytes of the array (NumPy's
"NPY format", version 1.0), so that neither numpy nor the whole array has to be in memory.
"""

import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

MAGIC = b"\x93NUMPY\x01\x00"
ALIGNMENT = 64  # of the data, as the format requires


def npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    """The header before the data of an array in C order."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}".encode("latin1")
    filled = len(MAGIC) + 2 + len(text) + 1
    padding = b" " * (-filled % ALIGNMENT)
    return MAGIC + struct.pack("<H", len(text) + len(padding) + 1) + text + padding + b"\n"


def write_npz(
    file: Path | BinaryIO,
    shape: tuple[int, int, int, int],
    images: Iterable[bytes],
    labels: Iterable[int] | None,
    on_image: Callable[[], None] = lambda: None,
) -> None:
    """Write arr_0, uint8 [N, H, W, 3], from the images' bytes, and arr_1, int64 [N], if there are labels."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            member.write(npy_header("|u1", shape))
            for each in images:
                member.write(each)
                on_image()
        if labels is not None:
            with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                member.write(npy_header("<i8", shape[:1]))
                for label in labels:
                    member.write(struct.pack("<q", label))
