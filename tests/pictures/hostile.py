"""Pictures that cost their decoder much time or memory."""

import io
import zlib
from contextlib import suppress

import psutil
from PIL import Image

from tests.jobs.samples import chunk


def slow_jpeg(repeats: int) -> bytes:
    """A progressive JPEG that repeats its last scan, one byte that refines every block."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((2048, 2048)).save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    last = whole.rindex(b"\xff\xda")
    end = whole.rindex(b"\xff\xd9")
    return whole[:last] + repeats * whole[last:end] + whole[end:]


def wide_webp() -> bytes:
    """Two kilobytes that are 49 million pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (16383, 3000)).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def png_bomb(side: int) -> bytes:
    """A PNG of a transparent square, a thousandth of the size of its pixels."""
    header = side.to_bytes(4, "big") * 2 + bytes([8, 6, 0, 0, 0])
    packer, rows = zlib.compressobj(9), b""
    for _ in range(side):
        rows += packer.compress(bytes(1 + 4 * side))
    rows += packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def decoders(process: psutil.Process) -> list[psutil.Process]:
    """The children of a process that are decoding, without those that have ended but have not been waited for."""
    found = []
    for each in process.children():
        with suppress(psutil.NoSuchProcess):  # a zombie too
            found += [each] if "pictures.sandbox_program" in each.cmdline() else []
    return found
