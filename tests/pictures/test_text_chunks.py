import io
import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pictures.text_chunks import MAX_CHUNKS, MAX_TEXT_BYTES, SIGNATURE, text_chunk
from tests.jobs.samples import chunk, png


def with_text(*texts: tuple[str, str], compressed: bool = False) -> io.BytesIO:
    info = PngInfo()
    for keyword, text in texts:
        info.add_text(keyword, text, zip=compressed)
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=info)
    file.seek(0)
    return file


def test_text_of_a_keyword_is_found_among_others() -> None:
    assert text_chunk(with_text(("other", "a"), ("mine", "b"), ("mine", "c")), "mine") == b"b"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        SIGNATURE,
        png(1),
        with_text(("min", "e")).read(),
        with_text(("mine", "b"), compressed=True).read(),  # never expanded
        with_text(("mine", "b")).read().replace(b"mine\0b", b"mine\0c"),
        with_text(("mine", "b" * (MAX_TEXT_BYTES + 1))).read(),
        SIGNATURE + struct.pack(">I4s", 2**32 - 1, b"IDAT"),
        SIGNATURE + struct.pack(">I4s", 2**31, b"tEXt") + b"mine\0",
        SIGNATURE + struct.pack(">I4s", 100, b"tEXt") + b"mine\0b",
        SIGNATURE + chunk(b"junk", b"") * MAX_CHUNKS + chunk(b"tEXt", b"mine\0b"),
        SIGNATURE + chunk(b"IEND", b"") + chunk(b"tEXt", b"mine\0b"),
        SIGNATURE + chunk(b"zTXt", b"mine\0\0" + zlib.compress(bytes(10**7))),
    ],
)
def test_bytes_without_such_text_give_none(data: bytes) -> None:
    assert text_chunk(io.BytesIO(data), "mine") is None
