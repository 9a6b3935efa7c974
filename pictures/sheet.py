"""Images of a grid on one labelled sheet."""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from pictures.decoding import decode

LEAST_CELL_PX = 96  # smaller images are enlarged by a whole factor, so that labels have room and pixels stay square
MOST_CELLS_PIXELS, MOST_SIDE_PX = 16_000_000, 8192  # of all cells together; beyond these, cells are reduced
GAP_PX, MARGIN_PX = 4, 12
LINE_PX, TEXT_PX = 20, 13
MOST_LABEL_PX = 200  # of a row's label; longer ones are cut
PAPER, INK, FAINT, EMPTY = "#ffffff", "#1d1c19", "#5f5c53", "#eceae3"


class SheetCell(NamedTuple):
    """A cell's PNG, or one word for the reason why there is none."""

    png: bytes | None
    lack: str = ""


class SheetAxis(NamedTuple):
    """The name of an axis, and a label for each of its values."""

    name: str
    labels: Sequence[str]


def drawn_sheet(
    title: str, x: SheetAxis, y: SheetAxis | None, cells: Sequence[SheetCell], max_pixels: int
) -> Image.Image:
    """A picture with the cells row by row, the values of x above them and those of y to their left.

    max_pixels: of one cell's PNG. Not thread-safe, like `decode`.
    Raises: PictureError for a cell that is not a PNG or has more pixels; MemoryError.
    """
    pictures = [None if each.png is None else decode(io.BytesIO(each.png), max_pixels, ("PNG",)) for each in cells]
    rows = 1 if y is None else len(y.labels)
    edge = cell_edge([max(each.size) for each in pictures if each is not None], len(x.labels), rows)
    return _Sheet(title, x, y, edge).drawn(pictures, [each.lack for each in cells])


def cell_edge(sizes: Sequence[int], columns: int, rows: int) -> int:
    """Pixels of a cell's side, for images of these sizes."""
    size = max(sizes, default=LEAST_CELL_PX)
    enlarged = size * max(1, math.ceil(LEAST_CELL_PX / size))
    room = min(math.isqrt(MOST_CELLS_PIXELS // (columns * rows)), MOST_SIDE_PX // max(columns, rows) - GAP_PX)
    return min(enlarged, room)


class _Sheet:
    """The places of labels and cells."""

    def __init__(self, title: str, x: SheetAxis, y: SheetAxis | None, edge: int) -> None:
        self.title, self.x, self.y, self.edge = title, x, y, edge
        self.font = ImageFont.load_default(TEXT_PX)
        names = () if y is None else (y.name, *y.labels)
        label_px = min(MOST_LABEL_PX, math.ceil(max(map(self.font.getlength, names), default=0)))
        self.left = MARGIN_PX + (label_px + MARGIN_PX if names else 0)
        self.top = MARGIN_PX + 3 * LINE_PX
        self.rows = 1 if y is None else len(y.labels)

    def drawn(self, pictures: Sequence[Image.Image | None], lacks: Sequence[str]) -> Image.Image:
        step, columns = self.edge + GAP_PX, len(self.x.labels)
        width = self.left + columns * step - GAP_PX + MARGIN_PX
        sheet = Image.new("RGB", (width, self.top + self.rows * step - GAP_PX + MARGIN_PX), PAPER)
        draw = ImageDraw.Draw(sheet)
        self._text(draw, (MARGIN_PX, MARGIN_PX), self.title, width - 2 * MARGIN_PX, INK)
        self._text(draw, (self.left, MARGIN_PX + LINE_PX), self.x.name, width - self.left - MARGIN_PX, FAINT)
        for column, label in enumerate(self.x.labels):
            self._text(draw, (self.left + column * step, self.top - LINE_PX), label, self.edge, INK)
        if self.y is not None:
            room = self.left - 2 * MARGIN_PX
            self._text(draw, (MARGIN_PX, self.top - LINE_PX), self.y.name, room, FAINT)
            for row, label in enumerate(self.y.labels):
                self._text(draw, (MARGIN_PX, self.top + row * step + (self.edge - TEXT_PX) // 2), label, room, INK)
        for place, (picture, lack) in enumerate(zip(pictures, lacks, strict=True)):
            at = self.left + place % columns * step, self.top + place // columns * step
            if picture is not None:
                sheet.paste(fitted(picture, self.edge), at)
            else:
                draw.rectangle((*at, at[0] + self.edge - 1, at[1] + self.edge - 1), fill=EMPTY)
                self._text(draw, (at[0] + GAP_PX, at[1] + self.edge // 2), lack, self.edge - 2 * GAP_PX, FAINT)
        return sheet

    def _text(self, draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, room_px: float, fill: str) -> None:
        """Write a text, cut to room_px."""
        shown = text
        while shown and self.font.getlength(shown) > room_px:
            text = text[:-1]
            shown = f"{text}..." if text else ""
        draw.text(at, shown, fill=fill, font=self.font)


def fitted(picture: Image.Image, edge: int) -> Image.Image:
    """The picture with this edge: enlarged without smoothing, or reduced with it."""
    method = Image.Resampling.NEAREST if max(picture.size) <= edge else Image.Resampling.LANCZOS
    return picture if picture.size == (edge, edge) else picture.resize((edge, edge), method)
