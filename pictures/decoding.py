"""Decodes any picture file to the form that the project uses: 8-bit RGB, upright, on white, one frame."""

import os
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, cast

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

MAX_SIDE_PX = 16_384
MAX_ASPECT = 32  # the short side is scaled to a pipeline's size before the middle square is taken
MAX_PIXELS = 179_000_000  # Pillow's own limit, for trusted files
# EPS needs Ghostscript; Pillow recognises the others but does not decode them
NOT_DECODED = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})


class PictureError(ValueError):
    """A file is not a usable picture; the message is a clause that follows its name.

    limit: the field of `pictures.sandbox.DecodeLimits` that it exceeds, if it is one.
    """

    def __init__(self, detail: str, limit: str | None = None) -> None:
        super().__init__(detail)
        self.limit = limit


def decode(
    source: Path | IO[bytes], max_upload_pixels: int = MAX_PIXELS, formats: Sequence[str] | None = None
) -> Image.Image:
    """The first frame of a picture, whatever its file name: 8-bit RGB, turned by its EXIF data, over white.

    formats: Pillow's names; None for all that it decodes without other programs. 16-bit grey is scaled, 32-bit grey is
    read as 16-bit; floats count as 0 to 1 if none is above 1. Colour profiles are ignored, as in the official code.
    Limits are checked against the header before any pixel is decoded. Not thread-safe, because Python's warning filters
    are global.
    Raises: PictureError; OSError for a file that cannot be opened; MemoryError.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return decode(file, max_upload_pixels, formats)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata, and about sizes, which are checked here
        with _opened(source, formats or all_formats()) as image:
            refuse(image, max_upload_pixels)
            try:
                return flattened(upright(image))
            except MemoryError:
                raise
            except Exception as error:  # Pillow's decoders raise errors of any type
                raise PictureError(f"cannot be decoded: the {image.format} file is damaged or cut off") from error


@cache
def all_formats() -> tuple[str, ...]:
    """Every format that Pillow decodes without other programs."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in NOT_DECODED)


def _opened(source: IO[bytes], formats: Sequence[str]) -> Image.Image:
    """Open a picture and read its header."""
    try:
        return Image.open(source, formats=tuple(formats))
    except Image.DecompressionBombError as error:
        raise PictureError("has too many pixels", "max_upload_pixels") from error
    except UnidentifiedImageError as error:
        if source.seek(0, os.SEEK_END) == 0:
            raise PictureError("is empty") from error
        raise PictureError(f"is not a {_listed(formats)} picture") from error
    except MemoryError:
        raise
    except Exception as error:  # any type, as in decoding; also for a compressed text or profile that becomes too large
        raise PictureError(
            "cannot be read: its header is damaged or cut off, or its contents other than the picture are too large"
        ) from error


def _listed(formats: Sequence[str]) -> str:
    """Formats as a phrase; "readable" for more than four."""
    names = [{"WEBP": "WebP"}.get(name, name) for name in formats]
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) <= 4 else "readable"


def refuse(image: Image.Image, max_upload_pixels: int) -> None:
    """Raise PictureError for a picture that must not be decoded."""
    size = f"{image.width} x {image.height} pixels"
    if max(image.size) > MAX_SIDE_PX:
        raise PictureError(f"has {size}; a side may have at most {MAX_SIDE_PX}")
    if image.width * image.height > max_upload_pixels:
        raise PictureError(f"has {size}; a picture may have at most {max_upload_pixels} in all", "max_upload_pixels")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise PictureError(f"has {size}; its long side may be at most {MAX_ASPECT} times its short one")


def upright(image: Image.Image) -> Image.Image:
    """The picture, turned by its EXIF data."""
    image.load()  # first, because Pillow turns a TIFF here and removes its tag
    try:
        ImageOps.exif_transpose(image, in_place=True)  # without a copy of a picture that stands upright
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - unreadable EXIF data are ignored, as in viewers
        pass
    return image


def flattened(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB, with transparency over white."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        transparency = image.info.get("transparency")
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")  # Pillow would clip
        if transparency is not None:
            image.info["transparency"] = round(transparency / 257)
    elif image.mode == "F":
        highest = cast(tuple[float, float], image.getextrema())[1]
        white = 1 if highest <= 1 else 255
        image = image.point(lambda value: value * (255 / white) + 0.5).convert("L")
    elif image.mode == "LAB":  # Pillow converts it only by profiles
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    ground = Image.new("RGB", image.size, "white")
    ground.paste(rgba, mask=rgba.getchannel("A"))
    return ground
