"""The X/Y grid of the page in a real Chromium: what it posts, its live cells, its sheet, and what it says of errors."""

import json
import re

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.service.page.painter import Painter, open_page
from tests.service.page.test_everybody import no_horizontal_scroll

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def open_grid(page: Page) -> None:
    open_page(page)
    page.locator("#grid-form summary").click()
    expect(page.locator("#make-grid")).to_be_visible()


def fill_axes(page: Page, x: str, x_values: str, y: str, y_values: str) -> None:
    for axis, field, values in (("x", x, x_values), ("y", y, y_values)):
        page.locator(f"#grid-{axis}").select_option(field)
        if field:
            page.locator(f"#grid-{axis}-values").fill(values)


def make(page: Page) -> dict[str, object]:
    """Press the button; returns the body that was posted."""
    with page.expect_request(lambda request: request.url.endswith("/v1/grids")) as posted:
        page.locator("#make-grid").click()
    body: dict[str, object] = json.loads(posted.value.post_data or "")
    return body


def test_grid_posts_the_axes_and_what_else_the_form_says(page: Page, painter: Painter) -> None:
    open_grid(page)
    page.get_by_role("radio", name="torus", exact=True).check(force=True)
    page.get_by_label("Steps", exact=True).fill("7")
    page.get_by_label("Images").fill("3")
    page.get_by_label("Seed").fill(str(2**63 - 1))
    fill_axes(page, "guidance_scale", "0, 2.5", "sampler", "ddim, heun")
    body = make(page)
    assert body["x"] == {"field": "guidance_scale", "values": [0, 2.5]}
    assert body["y"] == {"field": "sampler", "values": ["ddim", "heun"]}
    assert (body["class_label"], body["steps"], body["seed"]) == ("torus", 7, 2**63 - 1)
    assert {"n", "guidance_scale", "sampler", "eta"}.isdisjoint(body)
    expect(page.locator("#grid-table .grid-cell")).to_have_count(4)
    expect(page.locator("#grid-table thead th")).to_have_text(["0", "2.5"])
    expect(page.locator("#grid-table tbody th")).to_have_text(["DDIM", "Heun"])


def test_values_are_offered_for_each_field_and_classes_are_named(page: Page, painter: Painter) -> None:
    open_grid(page)
    expect(page.locator("#grid-x-values")).to_have_value("0, 1, 2, 4, 8")
    expect(page.locator("#grid-y-values")).to_have_value("10, 25, 50")
    page.locator("#grid-y").select_option("class_label")
    expect(page.locator("#grid-y-values")).to_have_value("sphere, cube, cylinder, cone, torus")
    page.locator("#grid-y").select_option("")
    expect(page.locator("#grid-y-values")).to_be_disabled()
    page.locator("#grid-x").select_option("class_label")
    page.locator("#grid-x-values").fill("torus, 3")
    assert make(page)["x"] == {"field": "class_label", "values": ["torus", 3]}
    expect(page.locator("#grid-table thead th")).to_have_text(["torus", "cone"])
    expect(page.locator("#grid-table tbody th")).to_have_count(0)


def test_cells_fill_one_by_one_open_on_the_stage_and_end_in_a_sheet(page: Page, painter: Painter) -> None:
    open_grid(page)
    page.get_by_label("Seed").fill("42")
    fill_axes(page, "guidance_scale", "0, 2", "seed", f"7, {2**63 - 1}")
    page.locator("#grid-y-values").press("Enter")  # does not make one image
    expect(page.locator("#grid-note")).to_have_text("0 of 4 cells")
    expect(page.locator("#grid-table tbody th")).to_have_text(["7", str(2**63 - 1)])
    claims = sorted(painter.claims(4), key=lambda each: (each.request.seed, each.request.guidance_scale))
    assert [(each.request.seed, each.request.guidance_scale) for each in claims] == [
        (7, 0), (7, 2), (2**63 - 1, 0), (2**63 - 1, 2)
    ]  # fmt: skip
    painter.finish(claims[1])
    expect(page.locator("#grid-note")).to_have_text("1 of 4 cells")
    second = page.locator(".grid-cell").nth(1)
    expect(second).to_have_attribute("aria-label", "Guidance scale 2, Seed 7: finished")
    expect(second.locator("img")).to_be_visible()
    second.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#request-facts")).to_contain_text("Guidance2")
    for each in (claims[0], *claims[2:]):
        painter.finish(each)
    expect(page.locator("#grid-note")).to_have_text("4 images from one seed")
    expect(page.locator("#grid-sheet")).to_have_attribute("src", re.compile(r"/v1/grids/[^/]+/sheet\?size=1024$"))
    expect(page.locator("#grid-sheet")).to_have_js_property("complete", True)
    assert page.evaluate("document.querySelector('#grid-sheet').naturalWidth") > 200
    with page.expect_download() as download:
        page.locator("#grid-download").click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")
    page.reload()
    expect(page.locator("#grid-note")).to_have_text("4 images from one seed")
    page.locator(".grid-cell").nth(3).click()
    expect(page.locator("#request-facts")).to_contain_text(str(2**63 - 1))


def test_cancelled_grid_says_how_many_images_are_missing(page: Page, painter: Painter) -> None:
    open_grid(page)
    fill_axes(page, "steps", "5, 9", "", "")
    make(page)
    page.locator("#cancel-grid").click()
    expect(page.locator("#grid-note")).to_have_text("0 of 2 images; 2 not made")
    expect(page.locator(".grid-cell").first).to_have_attribute("aria-label", "Steps 5: cancelled")
    expect(page.locator("#cancel-grid")).to_be_hidden()


@pytest.mark.refused(422)
def test_wrong_value_is_reported_beside_its_axis_and_another_field_beside_itself(
    page: Page, painter: Painter, client: httpx2.Client
) -> None:
    open_grid(page)
    fill_axes(page, "guidance_scale", "0, 60", "steps", "10")
    make(page)
    expect(page.locator("#grid-x-error")).to_contain_text("guidance_scale 60: ")
    expect(page.locator("#grid-x-values")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#grid-y-error")).to_be_hidden()
    page.locator("#grid-x-values").fill("0, 2")
    page.get_by_label("Seed").fill("x")
    make(page)
    expect(page.locator("[data-field=seed] .field-error")).to_be_visible()
    expect(page.locator("#grid-x-error")).to_be_hidden()
    assert client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_grid_needs_no_horizontal_scroll_of_the_page_on_a_phone(page: Page, painter: Painter, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 360, "height": 740})
    open_grid(page)
    fill_axes(page, "guidance_scale", "0, 1, 2, 3, 4, 5, 6, 7", "steps", "5, 9")
    make(page)
    expect(page.locator(".grid-cell")).to_have_count(16)
    assert no_horizontal_scroll(page)


def test_labels_break_inside_no_word_or_number_on_a_phone(page: Page, painter: Painter) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    open_grid(page)
    fill_axes(page, "guidance_scale", "0, 1, 2, 4, 8", "seed", f"10, {2**63 - 1}")
    make(page)
    labels = page.locator("#grid-table :is(th, thead td)")
    expect(labels).to_have_count(8)
    for label in labels.all():
        one_line = "e => e.firstChild && (r => (r.selectNodeContents(e), r.getClientRects().length))(new Range()) === 1"
        assert label.evaluate(one_line), label.inner_text()
        assert label.evaluate("e => e.scrollWidth <= e.clientWidth"), label.inner_text()
    assert no_horizontal_scroll(page)


def test_name_of_the_rows_stands_apart_from_the_columns(page: Page, painter: Painter) -> None:
    open_grid(page)
    fill_axes(page, "guidance_scale", "0, 1, 4", "steps", "5, 25")
    make(page)
    corner, first = page.locator("#grid-table thead td"), page.locator("#grid-table thead th").first
    expect(corner).to_have_text("Steps")
    ends = corner.evaluate("e => (r => (r.selectNodeContents(e), r.getBoundingClientRect().right))(new Range())")
    starts = first.bounding_box()
    assert starts is not None
    assert starts["x"] - ends > 18  # more than a space between words
    weight = "e => getComputedStyle(e).fontWeight"
    assert corner.evaluate(weight) == page.locator("#grid-table caption").evaluate(weight) != first.evaluate(weight)
