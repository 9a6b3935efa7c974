"""Quality against diversity on the page, in a real Chromium: what was measured, and where the form's settings lie."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.jobs.samples import SWEEP
from tests.service.page.painter import Painter, open_page
from tests.service.page.test_everybody import no_horizontal_scroll

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def open_with_sweep(page: Page, painter: Painter) -> None:
    painter.announce_sweep(SWEEP)
    open_page(page)
    expect(page.locator("#trade-off")).to_be_visible()
    page.get_by_role("radio", name="DDIM").check(force=True)


def set_fields(page: Page, scale: str, steps: str) -> None:
    page.get_by_label("Guidance scale", exact=True).fill(scale)
    page.get_by_label("Steps", exact=True).fill(steps)


def test_panel_is_there_for_a_model_with_a_sweep_alone(page: Page, painter: Painter) -> None:
    open_page(page)
    expect(page.locator("#trade-off")).to_be_hidden()
    open_with_sweep(page, painter)
    expect(page.locator("#trade-off-about")).to_contain_text("2026-11-29 with 400 images of each setting")
    page.get_by_label("Model", exact=True).select_option("demo-uncond")
    expect(page.locator("#trade-off")).to_be_hidden()


def test_settings_of_the_form_are_marked_and_described_also_between_measured_ones(page: Page, painter: Painter) -> None:
    open_with_sweep(page, painter)
    set_fields(page, "2", "10")
    expect(page.locator("#trade-off-note")).to_have_text(
        "Now, at scale 2 and 10 steps: precision 0.60, recall 0.70, FID 12.0."
    )
    exact = page.locator("[data-chart=scale] .now").get_attribute("d")
    set_fields(page, "5", "10")
    expect(page.locator("#trade-off-note")).to_contain_text("precision about 0.75, recall about 0.40")
    assert page.locator("[data-chart=scale] .now").get_attribute("d") != exact
    set_fields(page, "20", "300")
    expect(page.locator("#trade-off-note")).to_contain_text("beyond what was measured; the nearest end is marked")
    page.get_by_role("radio", name="Heun").check(force=True)
    expect(page.locator("#trade-off-note")).to_contain_text("Heun was not measured; DDIM is shown")


def test_points_put_their_settings_into_the_form_by_mouse_and_by_keyboard(page: Page, painter: Painter) -> None:
    open_with_sweep(page, painter)
    set_fields(page, "2", "10")
    page.get_by_role("button", name="Scale 8: precision 0.90, recall 0.10").click()
    expect(page.get_by_label("Guidance scale", exact=True)).to_have_value("8")
    point = page.get_by_role("button", name=re.compile("^25 steps: FID"))
    point.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Steps", exact=True)).to_have_value("25")
    expect(page.get_by_role("button", name=re.compile("^25 steps: FID"))).to_be_focused()
    expect(page.locator("#trade-off-note")).to_contain_text("at scale 8 and 25 steps: precision 0.90")
    expect(page.locator("#form-source")).to_contain_text('"steps": 25')


def test_all_figures_are_in_a_table_too(page: Page, painter: Painter) -> None:
    open_with_sweep(page, painter)
    page.locator("#trade-off summary").click()
    expect(page.locator("#trade-off-table tbody tr")).to_have_count(len(SWEEP.cells))
    first = page.locator("#trade-off-table tbody tr").first
    expect(first).to_have_text("DDIM5020.00 (19.00 to 21.00)0.500 (0.450 to 0.550)0.900")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_need_no_horizontal_scroll_on_a_phone(page: Page, painter: Painter, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 360, "height": 740})
    open_with_sweep(page, painter)
    page.locator("#trade-off summary").click()
    assert no_horizontal_scroll(page)
