"""Reads text chunks of a PNG without decoding pixels, so that no decompression bomb is expanded."""

import struct
import zlib
from typing import IO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 10_000  # that are read; enough for 80 MB in chunks of 8 KB
MAX_TEXT_BYTES = 65_536


def text_chunk(file: IO[bytes], keyword: str) -> bytes | None:
    """The text of a file's first tEXt chunk (PNG, 11.3.3.2) with a keyword.

    None if the file is not a PNG, or the chunk is missing, damaged or above MAX_TEXT_BYTES.
    """
    if file.read(len(SIGNATURE)) != SIGNATURE:
        return None
    wanted = keyword.encode("latin-1") + b"\0"
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return None
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return None
        if kind == b"tEXt" and length <= len(wanted) + MAX_TEXT_BYTES:
            content, check = file.read(length), file.read(4)
            if content.startswith(wanted):
                whole = len(content) == length and check == struct.pack(">I", zlib.crc32(kind + content))
                return content[len(wanted) :] if whole else None
        else:
            file.seek(length + 4, 1)
    return None
