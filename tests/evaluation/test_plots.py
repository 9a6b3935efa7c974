"""Charts: well-formed, every point inside, intervals around it."""

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Point, Series, chart

SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.floats(1e-3, 1e4)


@given(places=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=6), log=st.booleans())
def test_every_point_is_inside_the_axes(places: list[tuple[float, float]], log: bool) -> None:
    points = [Point(x, y, y * 0.9, y * 1.1, "shown") for x, y in places]
    root = ElementTree.fromstring(chart("t", "x", "y", [Series("s", points)], log_x=log, log_y=log))
    drawn = [each for each in root.iter(f"{SVG}circle") if each.find(f"{SVG}title") is not None]
    assert len(drawn) == len(points)
    for each in drawn:
        assert LEFT <= float(each.attrib["cx"]) <= WIDTH - RIGHT
        assert TOP <= float(each.attrib["cy"]) <= HEIGHT - BOTTOM


def test_higher_values_are_drawn_higher() -> None:
    points = [Point(1, 1, label="low"), Point(2, 5, label="high")]
    root = ElementTree.fromstring(chart("t", "x", "y", [Series("s", points)]))
    low, high = (float(each.attrib["cy"]) for each in root.iter(f"{SVG}circle") if each.find(f"{SVG}title") is not None)
    assert high < low


def test_nothing_to_draw_is_refused_and_names_are_escaped() -> None:
    with pytest.raises(ValueError, match="t: there is nothing to draw"):
        chart("t", "x", "y", [Series("s", [])])
    assert "<b>" not in chart("<b>", "<b>", "<b>", [Series("<b>", [Point(0, 0, label="<b>")])])
