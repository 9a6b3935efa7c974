"""A PNG of the service gives the page its settings back."""

import json

import pytest
from playwright.sync_api import FilePayload, Page, expect

from tests.service.page.painter import Painter, generate, open_page
from tests.service.page.test_from_pictures import dropped
from tests.service.test_zip import FACTS, picture

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def drop(page: Page, content: bytes) -> None:
    page.locator("body").dispatch_event("drop", {"dataTransfer": dropped(page, content)})


def test_dropped_png_fills_the_form_and_asks_for_that_image_alone(page: Page, painter: Painter) -> None:
    open_page(page)
    drop(page, picture(json.dumps(FACTS)))
    expect(page.locator("#seed")).to_have_value(str(FACTS["seed"]))
    expect(page.locator("#lock")).to_have_attribute("aria-pressed", "true")
    claim = generate(page, painter)
    asked = {"class_label": 4, "guidance_scale": 2.5, "steps": 25, "sampler": "ddim", "first_index": 3, "n": 1}
    assert claim.request.model_dump(include={*asked, "seed"}) == asked | {"seed": FACTS["seed"]}
    assert claim.request.upsample is False
    painter.finish(claim)


def test_chosen_png_fills_the_form_too(page: Page, painter: Painter) -> None:
    open_page(page)
    content = picture(json.dumps(FACTS))
    page.locator("#restore").set_input_files(FilePayload(name="a.png", mimeType="image/png", buffer=content))
    expect(page.locator("#seed")).to_have_value(str(FACTS["seed"]))


@pytest.mark.refused(422)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "mine.png is no PNG of this service"),
        (json.dumps(FACTS | {"model": "other"}), "made by the model other, which this service does not have"),
        (json.dumps(FACTS | {"kind": "reconstruct", "images": ["file-1"]}), "made from other pictures (reconstruct)"),
    ],
)
def test_picture_without_settings_here_says_why(page: Page, painter: Painter, text: str | None, message: str) -> None:
    open_page(page)
    drop(page, picture(text))
    expect(page.locator("#form-error")).to_contain_text(message)
