"""Random numbers that are a function of an address, on every machine and in every version, unlike random and hash()."""

import hashlib

BYTES = 8


def draw(*address: str | int | None) -> int:
    """A uniform 64-bit integer for an address."""
    text = "\0".join(map(str, address)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=BYTES, person=b"adm sample").digest(), "big")
