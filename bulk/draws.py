"""Numbers that follow from an address alone, on every machine and in every version: not random's, not hash()'s."""

import hashlib

BYTES = 8


def draw(*address: str | int | None) -> int:
    """An integer of 64 bits, evenly spread over addresses."""
    text = "\0".join(map(str, address)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=BYTES, person=b"adm sample").digest(), "big")
