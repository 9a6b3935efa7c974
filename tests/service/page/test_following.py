"""The page in a real Chromium follows its jobs: pictures as they form, ends, losses of worker and service."""

import re
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Route, expect
from redis import Redis

from jobs.settings import Settings
from tests.service.conftest import body, running_service
from tests.service.page.painter import Painter, films, generate, open_page, stop_clock

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ASK_MS = 5000  # between two looks of the page at models and workers
PLAY_MS = 110  # between two frames


def test_previews_appear_in_order_and_can_be_scrubbed(page: Page, painter: Painter) -> None:
    page.clock.install()
    open_page(page)
    claim = generate(page, painter)
    for step in (1, 2, 3):
        painter.step(claim, "base", step, 3, grey=10 * step)
    painter.step(claim, "upsample", 1, 1, grey=77)
    expect(films(page)).to_have_count(4)
    assert films(page).all_inner_texts() == ["1", "2", "3", "1"]
    expect(page.locator("#caption")).to_contain_text("Upsampler step 1 of 1")
    newest = page.locator("#picture").get_attribute("src")
    slider = page.get_by_role("slider", name="Denoising step")
    slider.fill("1")
    expect(page.locator("#caption")).to_contain_text("Base step 2 of 3")
    assert slider.get_attribute("aria-valuetext") == "Base, step 2 of 3"
    assert page.locator("#picture").get_attribute("src") == films(page).nth(1).locator("img").get_attribute("src")
    painter.finish(claim)
    expect(films(page)).to_have_count(5)
    expect(page.locator("#caption")).to_contain_text("Base step 2 of 3")  # it stays at the step that was chosen
    films(page).nth(3).click()
    assert page.locator("#picture").get_attribute("src") == newest
    page.get_by_role("button", name="Go to the latest step").click()
    expect(page.locator("#caption")).to_contain_text("Finished, 8 \N{MULTIPLICATION SIGN} 8 px")
    stop_clock(page)
    page.get_by_role("button", name="Play the denoising").click()
    expect(page.locator("#caption")).to_contain_text("Base step 1 of 3")
    page.clock.run_for(4 * PLAY_MS)
    expect(page.locator("#caption")).to_contain_text("Finished")


def test_finished_image_shows_and_downloads_byte_for_byte(
    page: Page, painter: Painter, client: httpx2.Client, tmp_path: Path
) -> None:
    open_page(page)
    claim = generate(page, painter)
    (record,) = painter.finish(claim)
    url = f"/v1/jobs/{claim.job_id}/images/0"
    expect(page.locator("#picture")).to_have_attribute("src", url)
    assert (
        page.locator("#picture").evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") == 8
    )
    with page.expect_download() as download:
        page.get_by_role("link", name="Download PNG").click()
    download.value.save_as(tmp_path / "image.png")
    assert (tmp_path / "image.png").read_bytes() == client.get(url).content
    assert sha256((tmp_path / "image.png").read_bytes()).hexdigest() == record.sha256
    assert download.value.suggested_filename == f"sphere-seed{claim.request.seed}-0.png"
    expect(page.locator("#progress-area")).to_be_hidden()
    expect(page.locator("#announcer")).to_contain_text("finished")


def test_pixels_are_scaled_by_a_whole_factor_and_may_be_smoothed(page: Page, painter: Painter) -> None:
    open_page(page)
    painter.finish(generate(page, painter))
    picture = page.locator("#picture")
    expect(picture).to_be_visible()
    for width in (1280, 1000, 700, 360):
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
        edge = page.locator("#picture-box").evaluate("box => box.offsetWidth")
        assert edge % 64 == 0
        assert edge >= 256
    assert picture.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    page.get_by_role("radio", name="Smooth").check(force=True)
    assert picture.evaluate("image => getComputedStyle(image).imageRendering") == "auto"


def test_cancel_ends_the_job_that_is_shown(page: Page, painter: Painter, client: httpx2.Client) -> None:
    open_page(page)
    claim = generate(page, painter)
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("#progress-text")).to_have_text("Cancelling…")
    painter.hear_cancel(claim)
    expect(page.locator("#outcome")).to_have_text("This job was cancelled.")
    expect(page.locator("#progress-area")).to_be_hidden()
    assert client.get(f"/v1/jobs/{claim.job_id}").json()["status"] == "cancelled"


@pytest.mark.refused(503)
def test_failed_cancel_is_shown_while_the_job_makes_progress(page: Page, painter: Painter) -> None:
    open_page(page)
    claim = generate(page, painter)
    page.route("**/cancel", lambda route: route.fulfill(status=503, json={"title": "Busy", "detail": "Redis is away"}))
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("#cancel-note")).to_have_text("Redis is away.")
    painter.step(claim, "base", 2, 25, 90)
    expect(page.locator("#progress-text")).to_contain_text("Base step 2")
    expect(page.locator("#cancel-note")).to_have_text("Redis is away.")
    painter.finish(claim)
    expect(page.locator("#cancel-note")).to_be_hidden()


def test_queued_job_shows_its_place_and_can_be_cancelled(page: Page, painter: Painter, client: httpx2.Client) -> None:
    client.post("/v1/jobs", json=body())
    open_page(page)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#progress-text")).to_have_text("1 before it in the queue")
    expect(page.locator("#progress-hint")).to_contain_text("Done in about")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("#outcome")).to_have_text("This job was cancelled.")


def test_images_from_a_first_index_on_have_their_own_addresses(
    page: Page, painter: Painter, client: httpx2.Client
) -> None:
    client.post("/v1/jobs", json=body(n=2, first_index=3))
    claim = painter.claim()
    painter.finish(claim)
    open_page(page)
    picture = page.locator("#picture")
    expect(picture).to_have_attribute("src", f"/v1/jobs/{claim.job_id}/images/3")
    page.get_by_role("button", name="Image 2 of 2").click()
    expect(picture).to_have_attribute("src", f"/v1/jobs/{claim.job_id}/images/4")
    expect(page.locator("#request-facts")).to_contain_text("2 of 2")


def test_details_name_the_sampler_as_the_form_does(page: Page, painter: Painter, client: httpx2.Client) -> None:
    client.post("/v1/jobs", json=body(sampler="dpmpp_2m"))
    painter.claim()
    open_page(page)
    expect(page.locator("#samplers")).to_contain_text("DPM++ 2M")
    expect(page.locator("#request-facts")).to_contain_text("DPM++ 2M")


def test_reload_shows_the_gallery_and_follows_what_still_runs(page: Page, painter: Painter) -> None:
    open_page(page)
    page.get_by_label("Images").fill("2")
    painter.finish(generate(page, painter))
    running = generate(page, painter)
    page.reload()
    expect(page.locator("#tiles img[src*='/images/']")).to_have_count(2)
    expect(page.locator("#tiles .active")).to_have_count(1)
    painter.step(running, "base", 1, 2, grey=9)
    expect(page.locator("#tiles .active .tile-seed")).to_have_text("25 %")
    painter.finish(running)
    expect(page.locator("#tiles img[src*='/images/']")).to_have_count(4)
    expect(page.locator("#tiles .active")).to_have_count(0)
    expect(page.get_by_label("Images")).to_have_value("2")


def test_more_jobs_than_streams_all_arrive(page: Page, painter: Painter) -> None:
    open_page(page)
    claims = [generate(page, painter) for _ in range(7)]
    for claim in claims:
        painter.finish(claim)
    expect(page.locator("#tiles img[src*='/images/']")).to_have_count(7)
    expect(page.locator("#tiles .active")).to_have_count(0)
    expect(page.locator("#caption")).to_contain_text("Finished")


def test_silent_worker_is_reported_instead_of_a_time_left(page: Page, painter: Painter) -> None:
    page.clock.install()
    open_page(page)
    claim = generate(page, painter)
    painter.step(claim, "base", 1, 9, grey=9)
    expect(page.locator("#progress-text")).to_have_text("Base step 1 of 9")
    painter.step_reported(claim, "base", 2, 9, grey=9)
    hint = page.locator("#progress-hint")
    expect(hint).to_contain_text("left")
    page.clock.fast_forward(20_000)
    expect(hint).to_have_text(
        re.compile(
            r"The worker has been silent for ([2-9]\d|\d{3}) s. If it has ended, another worker takes over when the "
            r"lease ends."
        )
    )
    painter.step_reported(claim, "base", 3, 9, grey=9)
    expect(hint).to_contain_text("left")


def test_answer_of_a_cancel_that_the_end_overtook_changes_nothing(page: Page, painter: Painter) -> None:
    open_page(page)
    claim = generate(page, painter)

    def hold_back(route: Route) -> None:
        answer = route.fetch()
        painter.hear_cancel(claim)
        expect(page.locator("#outcome")).to_be_visible()
        route.fulfill(response=answer)

    page.route("**/cancel", hold_back)
    with page.expect_response("**/cancel") as cancelled:
        page.get_by_role("button", name="Cancel", exact=True).click()
    assert cancelled.value.json()["status"] == "cancelling"
    expect(page.locator("#outcome")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_hidden()


def test_pipeline_without_a_worker_is_reported_until_one_comes(page: Page, painter: Painter, redis: Redis) -> None:
    painter.inbox.close()
    page.clock.install()
    open_page(page)
    expect(page.locator("#served-by")).to_contain_text("No worker serves this pipeline")
    expect(page.locator("#fleet")).to_have_text("No worker is ready")
    redis.flushall()
    page.clock.run_for(ASK_MS)
    expect(page.locator("#waiting")).to_be_visible()
    painter.inbox.open()
    painter.beat()
    page.clock.run_for(ASK_MS)
    expect(page.locator("#served-by")).to_have_text("Served by cpu-0")
    expect(page.locator("#generate")).to_be_visible()


@pytest.mark.process
def test_stream_is_taken_up_again_after_the_service_restarted(
    browser: Browser, painter: Painter, service_settings: Settings
) -> None:
    with running_service(service_settings) as (address, _, _):
        context = browser.new_context(base_url=address)
        page = context.new_page()
        open_page(page)
        claim = generate(page, painter)
    with context:
        expect(page.locator("#progress-hint")).to_have_text("The connection was lost; trying again.")
        painter.beat()
        painter.finish(claim)
        port = address.rpartition(":")[2]
        with running_service(service_settings, ADM_PORT=port):
            expect(page.locator("#picture")).to_have_attribute("src", f"/v1/jobs/{claim.job_id}/images/0")
