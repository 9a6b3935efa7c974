"""Which of the formats that an image can have a caller prefers, by its Accept header (RFC 9110, 12.5.1)."""

import re
from collections.abc import Sequence

from pictures.thumbnails import Format

MEDIA_RANGE = re.compile(r"\s*(image/(?:png|webp|jpeg|\*)|\*/\*)\s*(?:;[^,]*?)?", re.IGNORECASE)
QUALITY = re.compile(r";\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*(?:;|$)", re.IGNORECASE)
HAS_QUALITY = re.compile(r";\s*q\s*=", re.IGNORECASE)
OTHERS: tuple[Format, ...] = ("webp", "jpeg")  # than the PNG; in this order where a caller takes both as gladly


def preferred_format(accept: Sequence[str]) -> Format:
    """The format for the lines of an Accept header.

    The PNG is the image itself, and what it is not asked for by name, browsers and programs save under that name. So a
    range such as `image/*` or `*/*` is taken to mean the PNG, and so is a header that none of the formats is in.
    """
    weights: dict[str, float] = {}
    for each in ",".join(accept).split(","):
        found, quality = MEDIA_RANGE.fullmatch(each), QUALITY.search(each)
        if found and (quality or not HAS_QUALITY.search(each)):  # a range with a malformed weight is none
            weights[found[1].lower().rpartition("/")[2]] = float(quality[1]) if quality else 1.0
    png = weights.get("png", 1.0 if weights.get("*") else 0.0)
    best = max(OTHERS, key=lambda name: weights.get(name, 0.0))
    return best if weights.get(best, 0.0) > png else "png"
