"""The web page in a real Chromium, on a real service and Redis; the worker's side is moved by the test itself."""

import json
import re
import time
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import (
    Browser,
    Page,
    Route,
    expect,
)
from redis import Redis

from jobs.settings import Settings
from tests.service.conftest import body, running_service
from tests.service.page.painter import Painter, films, generate, open_page

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def no_horizontal_scroll(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def test_posts_what_the_form_says(page: Page, painter: Painter) -> None:
    open_page(page)
    page.get_by_role("radio", name="cone", exact=True).check(force=True)
    page.get_by_label("Guidance scale", exact=True).fill("3.5")
    page.get_by_label("Steps", exact=True).fill("7")
    page.get_by_role("radio", name="DDIM").check(force=True)
    page.get_by_label("Eta", exact=True).fill("0.25")
    page.get_by_label("Images").fill("2")
    page.get_by_label("Seed").fill("42")
    page.locator("#upsample").uncheck()
    request = generate(page, painter).request
    assert (request.model, request.class_label, request.guidance_scale) == ("demo", 3, 3.5)
    assert (request.steps, request.sampler, request.eta) == (7, "ddim", 0.25)
    assert (request.n, request.seed, request.upsample, request.previews) == (2, 42, False, True)


def test_no_class_posts_null_and_no_guidance(page: Page, painter: Painter) -> None:
    open_page(page)
    page.get_by_label("Model").select_option("demo-uncond")
    page.get_by_role("radio", name="no class").check(force=True)
    expect(page.get_by_label("Guidance scale", exact=True)).to_be_disabled()
    page.get_by_role("radio", name="DDPM").check(force=True)
    expect(page.get_by_label("Eta", exact=True)).to_be_hidden()
    request = generate(page, painter).request
    assert (request.model, request.class_label, request.guidance_scale) == ("demo-uncond", None, 0)
    assert (request.sampler, request.eta) == ("ddpm", 0)


def test_seed_is_drawn_anew_unless_locked(page: Page, painter: Painter) -> None:
    open_page(page)
    seed = page.get_by_label("Seed")
    first = seed.input_value()
    assert generate(page, painter).request.seed == int(first)
    expect(seed).not_to_have_value(first)
    second = seed.input_value()
    page.get_by_role("button", name="Reroll").click()
    expect(seed).not_to_have_value(second)
    page.get_by_role("button", name="Lock").click()
    seed.fill(str(2**63 - 1))  # more than a number of the browser holds
    assert generate(page, painter).request.seed == 2**63 - 1
    expect(seed).to_have_value(str(2**63 - 1))
    expect(page.locator("#request-facts")).to_contain_text(str(2**63 - 1))


def test_previews_appear_in_order_and_can_be_scrubbed(page: Page, painter: Painter) -> None:
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
    expect(page.locator("#caption")).to_contain_text("Base step 2 of 3")  # who scrubs is not carried off
    films(page).nth(3).click()
    assert page.locator("#picture").get_attribute("src") == newest
    page.get_by_role("button", name="Go to the latest step").click()
    expect(page.locator("#caption")).to_contain_text("Finished, 8 \N{MULTIPLICATION SIGN} 8 px")
    page.get_by_role("button", name="Play the denoising").click()
    expect(page.locator("#caption")).to_contain_text("Base step 1 of 3")
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


@pytest.mark.parametrize(
    ("label", "name", "value"),
    [("Steps", "steps", "0"), ("Guidance scale", "guidance_scale", "51"), ("Seed", "seed", "x")],
)
def test_refused_field_says_why_beside_itself(
    page: Page, painter: Painter, client: httpx2.Client, errors: list[str], label: str, name: str, value: str
) -> None:
    open_page(page)
    field = page.get_by_label(label, exact=True)
    field.fill(value)
    with page.expect_response("**/v1/jobs") as response:
        page.get_by_role("button", name="Generate").click()
    assert response.value.status == 422
    (error,) = response.value.json()["errors"]
    expect(page.locator(f"[data-field={name}] .field-error")).to_have_text(error["detail"])
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    assert client.get("/v1/jobs").json()["data"] == []
    field.fill("9")
    expect(page.locator(".field-error")).to_have_count(0)
    assert generate(page, painter).request.model_dump()[name] == 9
    assert len(errors) == 1  # the browser itself notes every refused call
    assert "422" in errors.pop()


def test_refusal_of_no_field_is_told_with_the_time_to_try_again(
    browser: Browser, painter: Painter, service_settings: Settings
) -> None:
    with (
        running_service(service_settings, ADM_QUEUE_LIMIT_SECONDS="1") as (address, _, _),
        browser.new_context(base_url=address) as context,
    ):
        page = context.new_page()
        open_page(page)
        page.get_by_label("Images").fill("64")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#progress-text")).to_have_text("Next in the queue")
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("alert")).to_have_text(
            re.compile(r"\d+ s of work are queued for the workers of 'demo'.*; the limit is 1 s. Try again in \d+ s.")
        )


def test_cancel_ends_the_job_that_is_shown(page: Page, painter: Painter, client: httpx2.Client) -> None:
    open_page(page)
    claim = generate(page, painter)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#progress-text")).to_have_text("Cancelling…")
    painter.hear_cancel(claim)
    expect(page.locator("#outcome")).to_have_text("This job was cancelled.")
    expect(page.locator("#progress-area")).to_be_hidden()
    assert client.get(f"/v1/jobs/{claim.job_id}").json()["status"] == "cancelled"


def test_queued_job_tells_its_place_and_can_be_cancelled(page: Page, painter: Painter, client: httpx2.Client) -> None:
    client.post("/v1/jobs", json=body())
    open_page(page)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#progress-text")).to_have_text("1 before it in the queue")
    expect(page.locator("#progress-hint")).to_contain_text("Done in about")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#outcome")).to_have_text("This job was cancelled.")


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


def test_again_fills_the_form_with_what_made_the_picture(page: Page, painter: Painter, client: httpx2.Client) -> None:
    upsample = {"steps": 4, "sampler": "ddpm", "eta": 0.0}
    client.post("/v1/jobs", json=body(seed=2**62 + 1, steps=9, eta=0.5, sampler="ddim", upsample=upsample))
    first = painter.claim()
    painter.finish(first)
    open_page(page)
    page.get_by_role("button", name=f"Again with seed {2**62 + 1}").click()
    expect(page.locator("#extras")).to_contain_text("upsample")
    second = generate(page, painter)
    assert second.request == first.request.model_copy(update={"previews": True})


def test_command_and_json_repeat_the_request(page: Page, painter: Painter) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_page(page)
    claim = generate(page, painter)
    painter.finish(claim)
    page.locator("#job-source summary").click()
    page.locator("#copy-json").click()
    expect(page.locator("#copy-json")).to_have_text("Copied")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert (copied["class_label"], copied["seed"], copied["n"]) == ("sphere", claim.request.seed, 1)
    page.locator("#copy-curl").click()
    expect(page.locator("#copy-curl")).to_have_text("Copied")
    command = page.evaluate("navigator.clipboard.readText()")
    assert command.startswith("curl -X POST http://127.0.0.1:")
    assert json.loads(command.split("-d '")[1].removesuffix("'")) == copied


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


def test_error_of_a_field_takes_no_room_from_the_field_beside_it(
    page: Page, painter: Painter, errors: list[str]
) -> None:
    open_page(page)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        page.get_by_label("Images").fill("0")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("[data-field=n] .field-error")).to_be_visible()
        box = page.locator("#upsample-label").bounding_box()
        assert box is not None
        assert box["height"] < 50  # two lines at most
        page.get_by_label("Images").fill("1")
    assert len(errors) == 2
    assert all("422" in errors.pop() for _ in range(2))


def test_silent_worker_is_said_instead_of_a_time_left(page: Page, painter: Painter) -> None:
    page.clock.install()
    open_page(page)
    claim = generate(page, painter)
    painter.step(claim, "base", 1, 9, grey=9)
    expect(page.locator("#progress-text")).to_have_text("Base step 1 of 9")
    time.sleep(0.6)  # progress is passed on a few times a second
    painter.step(claim, "base", 2, 9, grey=9)
    hint = page.locator("#progress-hint")
    expect(hint).to_contain_text("left")
    page.clock.fast_forward(20_000)
    expect(hint).to_have_text(
        re.compile(r"The worker has been silent for 2\d s. If it is gone, the job is taken over when its lease ends.")
    )
    time.sleep(0.6)
    painter.step(claim, "base", 3, 9, grey=9)
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
        page.get_by_role("button", name="Cancel").click()
    assert cancelled.value.json()["status"] == "cancelling"
    expect(page.locator("#outcome")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


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


def test_pipeline_without_a_worker_is_said_and_noticed_when_one_comes(
    page: Page, painter: Painter, redis: Redis
) -> None:
    painter.inbox.close()
    time.sleep(0.6)
    open_page(page)
    expect(page.locator("#held")).to_contain_text("No worker holds this pipeline")
    expect(page.locator("#fleet")).to_have_text("No worker is running")
    redis.flushall()
    expect(page.locator("#waiting")).to_be_visible()
    painter.inbox.open()
    painter.beat()
    expect(page.locator("#held")).to_have_text("Held by cpu-0")
    expect(page.locator("#generate")).to_be_visible()


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


def test_modules_stay_small_and_nothing_comes_from_elsewhere() -> None:
    static = Path(__file__).parents[3] / "service" / "static"
    for path in (each for each in static.rglob("*") if each.is_file()):
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), path
