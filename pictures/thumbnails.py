"""Converts the service's PNGs to other formats and sizes."""

import io
from typing import Literal, NamedTuple

from PIL import Image

from pictures.decoding import decode

Format = Literal["png", "webp", "jpeg"]
QUALITY = 90  # of WebP and JPEG: a picture of 64 px has no visible loss there


class Form(NamedTuple):
    """The target of a conversion: format, and largest side in pixels; None keeps the size."""

    format: Format
    size_px: int | None


def formed(png: bytes, form: Form, max_pixels: int) -> bytes:
    """A PNG in another form. It is reduced if its side is larger than requested, and never enlarged.

    Not thread-safe, like `decode`. Raises: PictureError for a file that is not a PNG or has more pixels; MemoryError.
    """
    return encoded(decode(io.BytesIO(png), max_pixels, ("PNG",)), form)


def encoded(image: Image.Image, form: Form) -> bytes:
    """Encode a picture in a form; it may be reduced in place."""
    out = io.BytesIO()
    if form.size_px is not None:
        image.thumbnail((form.size_px, form.size_px), Image.Resampling.LANCZOS)
    if form.format == "png":
        image.save(out, "PNG")
    else:
        image.save(out, form.format.upper(), quality=QUALITY)
    return out.getvalue()
