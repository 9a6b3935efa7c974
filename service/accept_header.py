"""Chooses the image format that a caller prefers by its Accept header (RFC 9110, 12.5.1)."""

import re
from collections.abc import Sequence

from pictures.thumbnails import Format

MEDIA_RANGE = re.compile(r"\s*(image/(?:png|webp|jpeg|\*)|\*/\*)\s*(?:;[^,]*?)?", re.IGNORECASE)
QUALITY = re.compile(r";\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*(?:;|$)", re.IGNORECASE)
HAS_QUALITY = re.compile(r";\s*q\s*=", re.IGNORECASE)
OTHERS: tuple[Format, ...] = ("webp", "jpeg")  # formats other than PNG; in this order for equal weights


def preferred_format(accept: Sequence[str]) -> Format:
    """The format for the lines of an Accept header.

    The PNG is the image itself, and browsers save an answer under the PNG's name. So another format is sent only to a
    caller that names it: `image/*`, `*/*` and a header without any of the formats give the PNG.
    """
    weights: dict[str, float] = {}
    for each in ",".join(accept).split(","):
        found, quality = MEDIA_RANGE.fullmatch(each), QUALITY.search(each)
        if found and (quality or not HAS_QUALITY.search(each)):  # a range with a malformed weight is ignored
            weights[found[1].lower().rpartition("/")[2]] = float(quality[1]) if quality else 1.0
    png = weights.get("png", 1.0 if weights.get("*") else 0.0)
    best = max(OTHERS, key=lambda name: weights.get(name, 0.0))
    return best if weights.get(best, 0.0) > png else "png"
