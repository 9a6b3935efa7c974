"""A first visit explains itself: a recorded run plays from noise to the picture before anything is pressed."""

import pytest
from playwright.sync_api import Page, Route, expect

from tests.service.page.painter import Painter, generate, open_page, stop_clock

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FRAME_MS = 260

PIXELS = """() => {
    const context = new OffscreenCanvas(64, 64).getContext("2d", {willReadFrequently: true});
    context.drawImage(document.querySelector("#example"), 0, 0);
    const {data} = context.getImageData(0, 0, 64, 64);
    let difference = 0;
    for (let at = 0; at < data.length - 8; at += 4) difference += Math.abs(data[at] - data[at + 8]);
    return difference / (data.length / 4);
}"""  # mean difference of pixels two apart (the base's pixels are enlarged to 2x2); large for noise


def test_noise_becomes_a_picture_by_itself_and_again_when_asked(page: Page, painter: Painter) -> None:
    page.clock.install()
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/first-visit.png", hold)
    with page.expect_request("**/first-visit.png"):  # the page has drawn itself then, and waits for the recording
        open_page(page)
    stop_clock(page)
    held[0].continue_()
    caption = page.locator("#example-caption")
    expect(caption).to_have_text("An example, recorded: pure noise")
    noise = page.evaluate(PIXELS)
    page.clock.run_for(5 * FRAME_MS)
    expect(caption).to_have_text("An example, recorded: the noise is removed step by step")
    page.clock.run_for(20 * FRAME_MS)
    expect(caption).to_have_text("An example, recorded: a torus")
    assert page.evaluate(PIXELS) < noise / 4
    page.get_by_role("button", name="Play again").click()
    expect(caption).to_have_text("An example, recorded: pure noise")


def test_visitors_who_prefer_reduced_motion_are_shown_the_finished_picture(page: Page, painter: Painter) -> None:
    page.emulate_media(reduced_motion="reduce")
    open_page(page)
    expect(page.locator("#example-caption")).to_have_text("An example, recorded: a torus")


def test_example_gives_way_to_the_first_job_and_is_not_fetched_by_those_who_have_some(
    page: Page, painter: Painter
) -> None:
    open_page(page)
    expect(page.locator("#example")).to_be_visible()
    painter.finish(generate(page, painter))
    expect(page.locator("#invitation")).to_be_hidden()
    expect(page.locator("#example")).to_be_hidden()
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    page.reload()
    expect(page.locator("#picture")).to_be_visible()
    assert not [each for each in fetched if "first-visit" in each]


def test_classifier_and_scale_are_explained_beside_their_controls(page: Page, painter: Painter) -> None:
    open_page(page)
    expect(page.locator("[data-field=class_label]")).to_contain_text("the classifier, recognizes these")
    expect(page.locator("[data-field=guidance_scale]")).to_contain_text("The strength of the classifier's pull")
    page.get_by_role("radio", name="no class").check(force=True)
    expect(page.locator("[data-field=guidance_scale]")).to_contain_text("Off without a class")
