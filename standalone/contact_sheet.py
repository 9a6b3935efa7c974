"""Labelled images on one sheet, as an overview of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from PIL import Image, ImageDraw, ImageFont, ImageOps

COLUMNS = 5
TILE_PX = 192  # three times the demo stack's 64, so that nearest-neighbour pixels stay square
MARGIN_PX = 12
LINE_PX = 16
BACKGROUND, INK, FAINT = "white", "black", "#666666"


@dataclass(frozen=True)
class Tile:
    """One image with its labels: a title, and a smaller second line."""

    image: Image.Image
    title: str
    note: str


def contact_sheet(tiles: Sequence[Tile]) -> Image.Image:
    """Tiles row by row, five in each, of the middle squares; pixels are never smoothed, so that grain can be seen."""
    columns, rows = min(COLUMNS, len(tiles)), ceil(len(tiles) / COLUMNS)
    step_x, step_y = TILE_PX + MARGIN_PX, TILE_PX + 2 * LINE_PX + 2 * MARGIN_PX
    sheet = Image.new("RGB", (columns * step_x + MARGIN_PX, rows * step_y + MARGIN_PX), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    title_font, note_font = ImageFont.load_default(14), ImageFont.load_default(11)
    for i, tile in enumerate(tiles):
        x, y = MARGIN_PX + i % COLUMNS * step_x, MARGIN_PX + i // COLUMNS * step_y
        square = ImageOps.fit(tile.image.convert("RGB"), (TILE_PX, TILE_PX), Image.Resampling.NEAREST)
        sheet.paste(square, (x, y))
        draw.text((x, y + TILE_PX + 4), tile.title, fill=INK, font=title_font)
        draw.text((x, y + TILE_PX + 4 + LINE_PX + 2), tile.note, fill=FAINT, font=note_font)
    return sheet
