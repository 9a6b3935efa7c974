"""Images of the service in other formats and sizes, made from their PNGs."""

import io
from typing import Literal, NamedTuple

from PIL import Image

from pictures.decoding import decode

Format = Literal["png", "webp", "jpeg"]
QUALITY = 90  # of WebP and JPEG: a picture of 64 px has no visible loss there


class Form(NamedTuple):
    """What is to be made of a PNG: its format, and its longest side at most; None: the size that it has."""

    format: Format
    size_px: int | None


def formed(png: bytes, form: Form, max_pixels: int) -> bytes:
    """A PNG in another form. It is made smaller where it is larger than asked for, and never larger.

    Not for two threads at once, as `decode`. Raises: PictureError for what is no PNG, or has more pixels; MemoryError.
    """
    image, out = decode(io.BytesIO(png), max_pixels, ("PNG",)), io.BytesIO()
    if form.size_px is not None:
        image.thumbnail((form.size_px, form.size_px), Image.Resampling.LANCZOS)
    if form.format == "png":
        image.save(out, "PNG")
    else:
        image.save(out, form.format.upper(), quality=QUALITY)
    return out.getvalue()
