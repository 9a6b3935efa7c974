import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from datasets.image_folder import center_crop
from pictures.decoding import PictureError
from pictures.reduction import KEPT_ASPECT, normalise
from tests.jobs.samples import chunk

MAX_PIXELS = 1_000_000
PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Image.Image:
    """The stored form of an accepted picture."""
    picture = normalise(io.BytesIO(data), MAX_PIXELS, 512)
    image = Image.open(io.BytesIO(picture.png))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (picture.width, picture.height))
    assert image.info == {}
    return image


def refusal(data: bytes) -> str:
    with pytest.raises(PictureError) as caught:
        normalise(io.BytesIO(data), MAX_PIXELS, 512)
    return str(caught.value)


def png_of(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        [PNG_HEAD, chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )


GRADIENT = Image.linear_gradient("L")  # 256 x 256, black above
COLOURS = Image.merge("RGB", (GRADIENT, GRADIENT.transpose(Image.Transpose.ROTATE_90), GRADIENT))


def test_rgb_png_keeps_every_pixel() -> None:
    assert decoded(encoded(COLOURS)).tobytes() == COLOURS.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_read(kind: str) -> None:
    assert decoded(encoded(COLOURS, kind)).size == (256, 256)


def test_picture_of_one_pixel_is_valid() -> None:
    assert decoded(encoded(Image.new("RGB", (1, 1), "red"))).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.new("RGB", (3, 2), "blue")
    upright.putpixel((0, 0), (255, 0, 0))
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = upright if undo is None else upright.transpose(undo)
    assert decoded(encoded(lying, exif=exif)).tobytes() == upright.tobytes()


def test_exif_that_cannot_be_read_is_passed_over() -> None:
    assert decoded(encoded(COLOURS, "JPEG", exif=b"Exif\0\0no tiff at all")).size == (256, 256)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_the_colours_that_they_show(mode: str) -> None:
    image = COLOURS.convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    shown = decoded(encoded(image, kind, **options)).tobytes()
    meant = image.convert("RGB").tobytes()
    assert max(abs(a - b) for a, b in zip(shown, meant, strict=True)) <= (3 if kind == "JPEG" else 0)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = [0, 128, 129, 257, 32768, 65534, 65535]
    rows = b"\0" + struct.pack(f">{len(values)}H", *values)
    image = decoded(png_of(len(values), 4, 16, 0, 4 * rows))
    assert [image.getpixel((x, 0)) for x in range(7)] == [(round(each / 257),) * 3 for each in values]


def test_16_bit_colours_keep_their_high_bytes() -> None:
    rows = b"\0" + struct.pack(">4H", 0xFF00, 0x8000, 0x00FF, 0xFFFF)
    assert decoded(png_of(1, 1, 16, 6, rows)).getpixel((0, 0)) == (255, 128, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 51))
    shown = decoded(encoded(image.convert(mode)))
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (204, 204, 204)]


@pytest.mark.parametrize(
    ("depth", "colour", "rows", "transparent"),
    [
        (8, 0, b"\0\x07\x50", b"\0\x07"),
        (16, 0, b"\0\x07\x07\x50\x50", b"\x07\x07"),
        (8, 2, b"\0\x07\x07\x07\x50\x50\x50", b"\0\x07\0\x07\0\x07"),
    ],
)
def test_colour_named_as_transparent_becomes_white(depth: int, colour: int, rows: bytes, transparent: bytes) -> None:
    shown = decoded(png_of(2, 1, depth, colour, rows, chunk(b"tRNS", transparent)))
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (0x50,) * 3]


def test_palette_with_a_transparent_entry_is_laid_over_white() -> None:
    palette = chunk(b"PLTE", b"\0\0\0\x10\x20\x30")
    shown = decoded(png_of(2, 1, 8, 3, b"\0\0\1", palette, chunk(b"tRNS", b"\0")))
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (16, 32, 48)]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    red = decoded(encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
    assert red.getpixel((1, 1)) == (255, 0, 0)


def test_first_of_the_pictures_in_a_telephones_jpeg_is_taken() -> None:
    data = encoded(COLOURS, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert decoded(data).size == (256, 256)


@pytest.mark.parametrize("data", [b"", b"not a picture", b"GIF89a" + bytes(20), b"%PDF-1.7", b"<svg/>", PNG_HEAD])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert refusal(data) in ("is empty", "is not a PNG, JPEG or WebP picture")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_cut_off_file_is_refused(kind: str) -> None:
    data = encoded(COLOURS, kind)
    assert "damaged" in refusal(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (50_000, 1, "a side may have at most 16384"),
        (1, 50_000, "a side may have at most 16384"),
        (33, 1, "its long side may be at most 32 times its short one"),
        (1001, 1000, "a picture may have at most 1000000 in all"),
        (16_384, 16_384, "pixels"),
        (2**31 - 1, 2**31 - 1, "pixels"),
    ],
)
def test_size_is_refused_by_the_header_alone(width: int, height: int, reason: str) -> None:
    assert reason in refusal(png_of(width, height, 8, 2, b""))


def test_metadata_that_unpack_a_thousandfold_are_refused() -> None:
    packed = zlib.compress(bytes(1 << 26), 9)
    for name, head in ((b"zTXt", b"key\0\0"), (b"iTXt", b"key\0\1\0\0\0"), (b"iCCP", b"name\0\0")):
        assert "too large" in refusal(png_of(1, 1, 8, 0, b"\0\0", chunk(name, head + packed)))


def test_metadata_are_left_behind() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "where I live")
    assert b"where I live" not in normalise(io.BytesIO(encoded(COLOURS, pnginfo=info)), MAX_PIXELS, 512).png


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    largest=st.integers(1, 64),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 9),
)
def test_pipelines_make_of_what_is_kept_what_they_would_make_of_the_whole(
    size: tuple[int, int], largest: int, fraction: float, seed: int
) -> None:
    assume(max(size) <= KEPT_ASPECT * min(size))
    whole = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    picture = normalise(io.BytesIO(encoded(whole)), MAX_PIXELS, largest)
    kept = Image.open(io.BytesIO(picture.png))
    assert (picture.width, picture.height) == size
    assert min(kept.size) < 2 * largest
    image_size = max(1, round(fraction * largest))
    assert center_crop(kept, image_size).tobytes() == center_crop(whole, image_size).tobytes()


@given(short=st.integers(3, 60), aspect=st.floats(2, 32), high=st.booleans())
def test_ends_that_no_pipeline_sees_are_not_kept(short: int, aspect: float, high: bool) -> None:
    size = (short, int(short * aspect)) if high else (int(short * aspect), short)
    picture = normalise(io.BytesIO(encoded(Image.new("RGB", size))), MAX_PIXELS, 512)
    assert (picture.width, picture.height) == size
    kept = Image.open(io.BytesIO(picture.png))
    assert (min(kept.size), max(kept.size)) == (short, min(max(size), 2 * short))


SMALL = COLOURS.resize((9, 7))
SEEDS = [
    encoded(SMALL),
    encoded(SMALL.convert("P")),
    encoded(SMALL.convert("RGBA")),
    encoded(SMALL, "JPEG"),
    encoded(SMALL.convert("CMYK"), "JPEG"),
    encoded(SMALL, "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
    encoded(SMALL, "WEBP"),
    encoded(SMALL.convert("RGBA"), "WEBP", lossless=True),
]


@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8),
    cut=st.none() | st.integers(0, 4000),
)
def test_damaged_file_is_a_picture_or_refused(seed: bytes, changes: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(seed)
    for place, value in changes:
        data[place % len(data)] = value
    with suppress(PictureError):
        decoded(bytes(data[: cut if cut is None else cut % len(data)]))
