"""Making pictures smaller as the official data code begins to, and keeping of an upload what pipelines can use."""

import io
from typing import IO, NamedTuple

from PIL import Image

from pictures.decoding import decode

UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP")
KEPT_ASPECT = 2  # pipelines take the middle square: of a longer picture the ends are seen by none
FAST = 1  # zlib's level: a photograph of 50 million pixels takes seconds at the default, for a tenth of its size


class Picture(NamedTuple):
    """A picture as jobs take it, and its upright size before it was reduced."""

    png: bytes
    width: int
    height: int


def normalise(source: IO[bytes], max_upload_pixels: int, short_side_px: int) -> Picture:
    """Decode a PNG, JPEG or WebP file, whatever it claims to be, reduce it and encode it anew.

    short_side_px is what the largest pipeline makes of a picture's short side; see `halved`.
    Raises: as `decode`.
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

    A pipeline that makes no more of the short side begins with the same halvings (`datasets.image_folder.reduce_to`),
    so that it makes the same pixels of this as of the whole.
    """
    while is_halved(*image.size, short_side_px):
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def is_halved(width: int, height: int, short_side_px: int) -> bool:
    """Whether `halved` makes a picture of this size smaller."""
    return min(width, height) >= 2 * short_side_px
