"""The page in a real Chromium is for everybody: keyboard, names of controls, a phone, no foreign code."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.service.page.painter import Painter, films, generate, open_page

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def no_horizontal_scroll(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def test_keyboard_alone_makes_scrubs_and_cancels(page: Page, painter: Painter) -> None:
    open_page(page)

    def tab_to(selector: str) -> None:
        for _ in range(60):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} is not reached with Tab")

    tab_to("input[name=class_label]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    tab_to("#guidance_scale-slider")
    page.keyboard.press("End")
    tab_to("#lock")
    page.keyboard.press("Space")
    tab_to("#generate")
    page.keyboard.press("Enter")
    claim = painter.claim()
    assert (claim.request.class_label, claim.request.guidance_scale) == (2, 10)
    expect(page.locator("#progress-text")).to_contain_text("Base step 0")
    for step in (1, 2, 3):
        painter.step(claim, "base", step, 3, grey=10 * step)
    expect(films(page)).to_have_count(3)
    tab_to("#scrubber")
    page.keyboard.press("Home")
    expect(page.locator("#caption")).to_contain_text("Base step 1 of 3")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#caption")).to_contain_text("Base step 2 of 3")
    tab_to("#cancel")
    page.keyboard.press("Enter")
    painter.hear_cancel(claim)
    expect(page.locator("#outcome")).to_be_focused()


def test_every_control_has_a_name(page: Page, painter: Painter) -> None:
    open_page(page)
    painter.finish(generate(page, painter))
    expect(page.locator("#tiles li")).to_have_count(1)
    nameless = page.evaluate("""() => [...document.querySelectorAll("input, select, button, a")]
        .filter((each) => each.offsetParent !== null)
        .filter((each) => !(each.getAttribute("aria-label") || each.textContent.trim()
            || [...(each.labels ?? [])].some((label) => label.textContent.trim())))
        .map((each) => each.outerHTML)""")
    assert nameless == []


def test_phone_needs_no_horizontal_scroll(page: Page, painter: Painter) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    open_page(page)
    assert no_horizontal_scroll(page)
    page.get_by_label("Images").fill("9")
    claim = generate(page, painter)
    for step in range(1, 26):
        painter.step(claim, "base", step, 25, grey=9 * step)
    expect(page.locator("#film")).to_be_visible()
    assert no_horizontal_scroll(page)
    painter.finish(claim)
    expect(page.locator("#tiles img[src*='/images/']")).to_have_count(9)
    page.locator("#job-source summary").click()
    assert no_horizontal_scroll(page)


def test_modules_stay_small_and_nothing_comes_from_elsewhere() -> None:
    static = Path(__file__).parents[3] / "service" / "static"
    for path in (each for each in static.rglob("*") if each.is_file() and each.suffix != ".png"):
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), path
