"""Sheets of grids: a cell's pixels are the image's, labels stay in their room, no sheet is larger than it may be."""

import io

import pytest
from PIL import Image

from pictures.decoding import PictureError
from pictures.sheet import MOST_CELLS_PIXELS, MOST_SIDE_PX, SheetAxis, SheetCell, cell_edge, drawn_sheet

COLOURS = ("red", "lime", "blue", "cyan", "magenta", "yellow")
MAX_PIXELS = 10_000


def png(colour: str, size: int = 32) -> bytes:
    out = io.BytesIO()
    picture = Image.new("RGB", (size, size), colour)
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(out, "PNG")
    return out.getvalue()


def sheet_of(labels: list[str], rows: list[str] | None, size: int = 32) -> Image.Image:
    y = None if rows is None else SheetAxis("steps", rows)
    count = len(labels) * len(rows or "?")
    cells = [SheetCell(png(COLOURS[place % len(COLOURS)], size)) for place in range(count)]
    return drawn_sheet("demo, seed 7", SheetAxis("guidance_scale", labels), y, cells, MAX_PIXELS)


def corner_of(sheet: Image.Image, colour: str) -> tuple[int, int]:
    """The place of the first pixel of a colour, from the top."""
    wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    pixels = sheet.load()
    assert pixels is not None
    return next((x, y) for y in range(sheet.height) for x in range(sheet.width) if pixels[x, y] == wanted)


def test_cells_are_row_by_row_enlarged_by_a_whole_factor_without_smoothing() -> None:
    sheet = sheet_of(["0", "1", "2"], ["10", "25"])
    places = [corner_of(sheet, colour) for colour in COLOURS]
    columns, rows = [x - 3 for x, _ in places[:3]], sorted({y for _, y in places})  # three pixels are of the marked one
    assert columns == [columns[0], columns[0] + 100, columns[0] + 200]
    assert rows == [rows[0], rows[0] + 100]
    for place, colour in enumerate(COLOURS):
        left, top = columns[place % 3], rows[place // 3]
        cell = sheet.crop((left, top, left + 96, top + 96))
        assert cell.resize((32, 32), Image.Resampling.NEAREST).tobytes() == opened(png(colour)).tobytes()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_long_labels_are_cut_to_their_cell_and_leave_the_others_alone() -> None:
    short, long = sheet_of(["a", "b"], ["x"]), sheet_of(["a", "b" * 300], ["x"])
    assert short.size == long.size
    first = (0, 0, corner_of(short, "lime")[0] - 8, short.height)
    assert short.crop(first).tobytes() == long.crop(first).tobytes()
    assert sheet_of(["a"], ["y" * 300]).width <= 96 + 200 + 3 * 12


def test_cell_without_an_image_says_why() -> None:
    cells = [SheetCell(png("red")), SheetCell(None, "failed")]
    sheet = drawn_sheet("t", SheetAxis("seed", ["1", "2"]), None, cells, MAX_PIXELS)
    empty = sheet.crop((sheet.width - 108, sheet.height - 108, sheet.width - 12, sheet.height - 12))
    assert len(empty.getcolors(1 << 14) or ()) > 2


@pytest.mark.parametrize(("size", "columns", "rows"), [(64, 16, 16), (512, 16, 16), (256, 64, 4), (1024, 1, 1)])
def test_no_sheet_is_larger_than_it_may_be(size: int, columns: int, rows: int) -> None:
    edge = cell_edge([size], columns, rows)
    assert edge * edge * columns * rows <= MOST_CELLS_PIXELS
    assert max(columns, rows) * (edge + 4) <= MOST_SIDE_PX
    assert edge > 0


def test_what_is_no_png_or_too_large_is_refused() -> None:
    for data in (b"GIF89a", png("red", 101)):
        with pytest.raises(PictureError):
            drawn_sheet("t", SheetAxis("seed", ["1"]), None, [SheetCell(data)], MAX_PIXELS)
