"""Random numbers that depend only on an address: not on the machine or the version, unlike random and hash()."""

import hashlib

BYTES = 8


def draw(*address: str | int | None) -> int:
    """A uniform 64-bit integer for an address."""
    text = "\0".join(map(str, address)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=BYTES, person=b"adm sample").digest(), "big")
