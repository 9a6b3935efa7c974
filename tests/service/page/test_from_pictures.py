"""The panel that starts from pictures: uploads, and what is made of them."""

import pytest
from playwright.sync_api import (
    FilePayload,
    JSHandle,
    Page,
    expect,
)
from redis import Redis

from jobs.redis import keys
from tests.jobs.samples import DEMO_UNCOND, png
from tests.service.page.painter import Painter, films, generate, open_page

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def choose(page: Page, slot: int, content: bytes, name: str = "mine.png") -> None:
    file = FilePayload(name=name, mimeType="image/png", buffer=content)
    page.locator(f"#slot-{slot} input").set_input_files(file)


def test_uploaded_picture_is_shown_and_reconstructed(page: Page, painter: Painter) -> None:
    open_page(page)
    reconstruct = page.get_by_role("button", name="Reconstruct", exact=True)
    expect(reconstruct).to_be_disabled()
    choose(page, 0, png(50, 8))
    expect(page.locator("#slot-0")).to_contain_text("8 \N{MULTIPLICATION SIGN} 8 px")
    expect(page.get_by_role("button", name="Morph", exact=True)).to_be_disabled()
    reconstruct.click()
    claim = painter.claim()
    assert (claim.request.kind, len(claim.request.images), claim.request.model) == ("reconstruct", 1, "demo")
    painter.finish(claim, {"errors": [{"mean_absolute": 1.25, "psnr": 41.5}]})
    expect(page.locator("#viewer-title")).to_have_text("Reconstruction")
    expect(page.locator("#request-facts")).to_contain_text("1.25 of 255")
    expect(page.locator("#request-facts")).to_contain_text("41.5 dB")
    expect(page.locator("#caption")).to_contain_text("Finished")
    page.get_by_role("slider", name="Denoising step").fill("0")
    expect(page.locator("#caption")).to_have_text("Your picture")
    expect(page.get_by_role("button", name="Again with this seed")).to_be_hidden()


def test_nothing_covers_a_picture(page: Page, painter: Painter) -> None:
    open_page(page)
    painter.finish(generate(page, painter))
    expect(page.locator("#picture")).to_be_visible()
    # in one call: the page may still be scrolling
    over = page.evaluate("""() => {
        const box = document.querySelector("#picture").getBoundingClientRect();
        return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2).id;
    }""")
    assert over == "picture"


def test_dropped_pictures_morph_frame_by_frame(page: Page, painter: Painter) -> None:
    open_page(page)
    for slot in (0, 1):
        page.locator(f"#slot-{slot}").dispatch_event("drop", {"dataTransfer": dropped(page, png(90 + slot, 8))})
        expect(page.locator(f"#slot-{slot}")).to_contain_text("8 \N{MULTIPLICATION SIGN} 8 px")
    page.get_by_role("button", name="Morph", exact=True).click()
    claim = painter.claim()
    assert (claim.request.kind, claim.request.n, len(set(claim.request.images))) == ("interpolate", 12, 2)
    painter.finish(claim)
    expect(films(page)).to_have_count(12)
    slider = page.get_by_role("slider", name="Frame of the morph")
    slider.fill("3")
    expect(page.locator("#caption")).to_have_text("Frame 4 of 12")
    slider.press("ArrowRight")
    expect(page.locator("#caption")).to_have_text("Frame 5 of 12")
    page.get_by_role("button", name="Play").click()
    expect(page.locator("#caption")).to_have_text("Frame 12 of 12")
    expect(page.locator("#siblings-area")).to_be_hidden()


def dropped(page: Page, content: bytes) -> JSHandle:
    """The event data of a browser for a dropped file."""
    make = """bytes => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], "mine.png", {type: "image/png"}));
        return transfer;
    }"""
    return page.evaluate_handle(make, list(content))


def test_scores_are_shown_as_bars(page: Page, painter: Painter) -> None:
    open_page(page)
    choose(page, 0, png(60, 8))
    page.get_by_role("button", name="Score", exact=True).click()
    claim = painter.claim()
    scores = [
        {"class_label": 4, "class_name": "torus", "probability": 0.875},
        {"class_label": 1, "class_name": "sphere", "probability": 0.125},
    ]
    painter.finish(claim, {"scores": [scores]})
    expect(page.locator("#scores li")).to_have_text(["torus87.5 %", "sphere12.5 %"])
    expect(page.get_by_role("progressbar", name="torus")).to_have_attribute("value", "0.875")


def test_variation_goes_as_far_as_the_slider_says(page: Page, painter: Painter) -> None:
    open_page(page)
    choose(page, 0, png(70, 8))
    page.get_by_label("Strength of a variation").fill("0.3")
    expect(page.locator("#strength-shown")).to_have_text("0.3")
    variations = page.get_by_role("button", name="Variations")
    expect(variations).to_be_enabled()  # the picture has been sent
    variations.focus()
    page.keyboard.press("Enter")
    claim = painter.claim()
    assert (claim.request.kind, claim.request.strength, claim.request.n) == ("variation", 0.3, 4)
    painter.finish(claim)
    expect(page.locator("#siblings button")).to_have_count(4)
    page.get_by_role("button", name="Image 3 of 4").click()
    expect(page.locator("#request-facts")).to_contain_text("3 of 4")


@pytest.mark.refused(422)
def test_file_that_is_no_picture_is_refused_in_words(page: Page, painter: Painter) -> None:
    open_page(page)
    choose(page, 0, b"not a picture", "notes.png")
    expect(page.locator("#from-picture-error")).to_have_text("notes.png is not a PNG, JPEG or WebP picture")
    expect(page.get_by_role("button", name="Score", exact=True)).to_be_disabled()
    choose(page, 0, png(80, 8))
    expect(page.get_by_role("button", name="Score", exact=True)).to_be_enabled()
    expect(page.locator("#from-picture-error")).to_be_hidden()


def test_model_that_only_generates_offers_nothing_from_pictures(page: Page, painter: Painter, redis: Redis) -> None:
    redis.hset(keys.PIPELINES, "demo-uncond", DEMO_UNCOND.model_copy(update={"kinds": ("generate",)}).model_dump_json())
    open_page(page)
    expect(page.locator("#from-picture")).to_be_visible()
    page.get_by_label("Model", exact=True).select_option("demo-uncond")
    expect(page.locator("#from-picture")).to_be_hidden()
