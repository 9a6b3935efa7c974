"""Reduces uploads to the pixels that pipelines use, with the first halvings of the official data code."""

import io
from typing import IO, NamedTuple

from PIL import Image

from pictures.decoding import decode

UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP")
KEPT_ASPECT = 2  # pipelines use the middle square, so the ends of longer pictures are cut
FAST = 1  # zlib's level; the default takes seconds for 50 million pixels and saves a tenth of the size


class Picture(NamedTuple):
    """A picture for jobs, and its upright size before the reduction."""

    png: bytes
    width: int
    height: int


def normalise(source: IO[bytes], max_upload_pixels: int, short_side_px: int) -> Picture:
    """Decode a PNG, JPEG or WebP file, whatever its name, reduce it and encode it again.

    short_side_px: the short side that the largest pipeline uses; see `halved`.
    Raises: the errors of `decode`.
    """
    rgb = decode(source, max_upload_pixels, UPLOAD_FORMATS)
    buffer = io.BytesIO()
    halved(without_ends(rgb), short_side_px).save(buffer, "PNG", compress_level=FAST)
    return Picture(buffer.getvalue(), rgb.width, rgb.height)


def without_ends(image: Image.Image) -> Image.Image:
    """The middle of a picture whose long side is more than KEPT_ASPECT times its short one."""
    longest = KEPT_ASPECT * min(image.size)
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def halved(image: Image.Image, short_side_px: int) -> Image.Image:
    """A picture, halved by a box filter while its short side is at least twice short_side_px.

    A pipeline with this short side or a smaller one begins with the same halvings
    (`datasets.image_folder.reduce_to`), so it gets the same pixels from this as from the original.
    """
    while is_halved(*image.size, short_side_px):
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def is_halved(width: int, height: int, short_side_px: int) -> bool:
    """Return whether `halved` reduces a picture of this size."""
    return min(width, height) >= 2 * short_side_px
