"""Each mode, orientation and transparency is treated the same way in every file format."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image, ImageCms

from pictures.decoding import PictureError, all_formats, decode

GREY = Image.linear_gradient("L").resize((8, 8))
COLOURS = Image.merge("RGB", (GREY, GREY.transpose(Image.Transpose.ROTATE_90), GREY))
MUTED = Image.blend(COLOURS, Image.new("RGB", COLOURS.size, "grey"), 0.7)  # LAB of 8 bits is coarse in strong colours
TOLERANCES = {"YCbCr": 3, "LAB": 2}  # of 255: their own rounding


def encoded(image: Image.Image, kind: str, **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer


def lab(image: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    made = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    assert made is not None
    return made


def sixteen_bits(mode: str) -> Image.Image:
    return GREY.convert("I").point(lambda value: value * 257 + 0).convert("I;16" if mode.startswith("I;16") else "I")


MODES: dict[str, tuple[io.BytesIO, Image.Image]] = {
    "1": (encoded(GREY.convert("1"), "PNG"), GREY.convert("1")),
    "L": (encoded(GREY, "TIFF"), GREY),
    "LA": (encoded(GREY.convert("LA"), "PNG"), GREY),
    "P": (encoded(COLOURS.convert("P"), "GIF"), COLOURS.convert("P")),
    "RGB": (encoded(COLOURS, "BMP"), COLOURS),
    "RGBA": (encoded(COLOURS.convert("RGBA"), "TGA"), COLOURS),
    "CMYK": (encoded(COLOURS.convert("CMYK"), "TIFF"), COLOURS.convert("CMYK")),
    "YCbCr": (encoded(COLOURS.convert("YCbCr"), "TIFF"), COLOURS),
    "LAB": (encoded(lab(MUTED), "TIFF"), MUTED),
    "I;16": (encoded(sixteen_bits("I;16"), "PNG"), GREY),
    "I": (encoded(sixteen_bits("I"), "TIFF"), GREY),
    "F": (encoded(GREY.convert("F"), "TIFF"), GREY),
    "F of 0 to 1": (encoded(GREY.convert("F").point(lambda value: value * (1 / 255) + 0), "TIFF"), GREY),
    "lossless WebP": (encoded(COLOURS, "WEBP", lossless=True), COLOURS),
    "lossless JPEG 2000": (encoded(COLOURS, "JPEG2000"), COLOURS),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_is_shown_as_what_it_means(name: str) -> None:
    file, meant = MODES[name]
    shown = decode(file)
    assert shown.mode == "RGB"
    pairs = zip(shown.tobytes(), meant.convert("RGB").tobytes(), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= TOLERANCES.get(name, 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "TGA", "ICO", "GIF"])
def test_transparency_is_white_in_every_format(kind: str) -> None:
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 0))  # a colour that is hidden
    image.paste((0, 0, 255, 255), (8, 0, 16, 16))
    options = {"lossless": True} if kind == "WEBP" else {}
    shown = decode(encoded(image, kind, **options))
    assert (shown.getpixel((3, 8)), shown.getpixel((12, 8))) == ((255, 255, 255), (0, 0, 255))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "MPO"])
def test_picture_is_turned_once_in_every_format(kind: str) -> None:
    lying = Image.new("RGB", (32, 16), "red")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert decode(encoded(lying, kind, exif=exif)).size == (16, 32)


def test_first_frame_of_a_gif_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=1)
    assert decode(file).getpixel((0, 0)) == (255, 0, 0)


def test_format_that_another_program_decodes_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    path.write_bytes(encoded(COLOURS, "EPS").getvalue())
    with pytest.raises(PictureError, match="is not a readable picture"):
        decode(path)
    assert {"PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF"} <= set(all_formats())


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"text", "is not a readable picture"), (encoded(COLOURS, "TIFF").getvalue()[:-90], "cut off")],
    ids=["empty", "text", "cut off"],
)
def test_undecodable_bytes_are_refused_by_reason(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=message):
        decode(path)
