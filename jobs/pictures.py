"""What people upload, made into the one kind of picture that jobs take: 8-bit RGB in PNG, upright, one frame."""

import io
import warnings
from contextlib import suppress
from typing import NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

from jobs.errors import FieldError, InvalidRequestError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_SIDE_PX = 16_384
MAX_ASPECT = 32  # a pipeline scales the short side to its own size before it takes the middle square
FAST = 1  # zlib's level: a photograph of 50 million pixels takes seconds at the default, for a tenth of its size
UPRIGHT = {  # what undoes each value of EXIF's Orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Picture(NamedTuple):
    """A picture as jobs take it, and its upright size before it was reduced."""

    png: bytes
    width: int
    height: int


def normalise(data: bytes, max_pixels: int, short_side_px: int) -> Picture:
    """Decode a PNG, JPEG or WebP file, whatever it claims to be, reduce it and encode it anew.

    short_side_px is what the largest pipeline makes of a picture's short side; see `reduced`.
    Limits are held against the header before any pixel is decoded. Not for two threads at once: a decoded picture
    may take hundreds of megabytes, and Python's switch for warnings is one for the whole process.
    Raises: InvalidRequestError, at /file, that says what is wrong.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata and of sizes that are checked here
        image = opened(data)
        refuse(image, max_pixels)
        try:
            rgb = flattened(upright(image))
        except Exception as error:  # Pillow's decoders raise whatever they stumble over
            raise wrong(f"cannot be decoded: the {image.format} file is damaged or cut off") from error
    buffer = io.BytesIO()
    reduced(rgb, short_side_px).save(buffer, "PNG", compress_level=FAST)
    return Picture(buffer.getvalue(), rgb.width, rgb.height)


def opened(data: bytes) -> Image.Image:
    """The picture with its header read."""
    if not data:
        raise wrong("is empty")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise wrong("has too many pixels") from error
    except UnidentifiedImageError as error:
        raise wrong("is not a PNG, JPEG or WebP picture") from error
    except Exception as error:  # as when it is decoded; a compressed text or profile that grows too large among them
        raise wrong("cannot be read: its header is damaged, or what it carries beside the picture too large") from error


def refuse(image: Image.Image, max_pixels: int) -> None:
    """Raise for a picture that is not to be decoded."""
    size = f"{image.width} x {image.height} pixels"
    if max(image.size) > MAX_SIDE_PX:
        raise wrong(f"has {size}; a side may have {MAX_SIDE_PX}")
    if image.width * image.height > max_pixels:
        raise wrong(f"has {size}; they may be {max_pixels} in all")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise wrong(f"has {size}; its long side may be {MAX_ASPECT} times its short one")
    # a second picture in a JPEG (MPO) is no frame but a depth or brightness map, as telephones add it
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise wrong("is animated; a picture has one frame")


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data ask."""
    orientation = 1
    with suppress(Exception):  # EXIF data that cannot be read say nothing; viewers show such pictures as they lie
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    image.load()
    turn = UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def flattened(image: Image.Image) -> Image.Image:
    """8-bit RGB, transparency laid over white."""
    if image.mode == "I;16":
        transparency = image.info.get("transparency")
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")  # Pillow alone would clip
        if transparency is not None:
            image.info["transparency"] = round(transparency / 257)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def reduced(image: Image.Image, short_side_px: int) -> Image.Image:
    """An RGB picture, halved by a box filter while its short side is at least twice short_side_px.

    A pipeline that makes no more of the short side begins with the same halvings (`datasets.image_folder.reduce_to`),
    so that it makes the same pixels of this as of the whole.
    """
    while is_reduced(*image.size, short_side_px):
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def is_reduced(width: int, height: int, short_side_px: int) -> bool:
    """Whether `reduced` makes a picture of this size smaller."""
    return min(width, height) >= 2 * short_side_px


def wrong(detail: str) -> InvalidRequestError:
    return InvalidRequestError([FieldError("/file", detail)])
