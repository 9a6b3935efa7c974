"""The page's form in a real Chromium: what it posts, and how it shows a refusal."""

import json
import re

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect

from jobs.settings import Settings
from tests.service.conftest import body, running_service
from tests.service.page.painter import Painter, generate, open_page

pytestmark = [pytest.mark.browser, pytest.mark.slow]


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


@pytest.mark.refused(422)
def test_one_of_each_class_posts_them_in_one_call(page: Page, painter: Painter, client: httpx2.Client) -> None:
    open_page(page)
    page.get_by_label("Steps", exact=True).fill("3")
    page.get_by_label("Seed").fill("42")
    with page.expect_request(lambda request: request.method == "POST") as posted:
        page.get_by_role("button", name="One of each class").click()
    assert len(json.loads(posted.value.post_data or "")["items"]) == 10
    expect(page.locator("#tiles .active")).to_have_count(10)
    expect(page.locator("#viewer-title")).to_have_text("Sphere")
    requests = [each["request"] for each in client.get("/v1/jobs").json()["data"]]
    assert [each["class_label"] for each in requests] == list(range(10))[::-1]
    assert {(each["steps"], each["seed"], each["previews"]) for each in requests} == {(3, 42, True)}
    with page.expect_response("**/v1/jobs") as refused:
        page.get_by_label("Steps", exact=True).fill("0")
        page.get_by_role("button", name="One of each class").click()
    assert refused.value.status == 422
    expect(page.locator("[data-field=steps] .field-error")).to_be_visible()


def test_no_class_posts_null_and_no_guidance(page: Page, painter: Painter) -> None:
    open_page(page)
    page.get_by_label("Model", exact=True).select_option("demo-uncond")
    page.get_by_role("radio", name="no class").check(force=True)
    expect(page.get_by_label("Guidance scale", exact=True)).to_be_disabled()
    page.get_by_role("radio", name="DDPM").check(force=True)
    expect(page.get_by_label("Eta", exact=True)).to_be_hidden()
    request = generate(page, painter).request
    assert (request.model, request.class_label, request.guidance_scale) == ("demo-uncond", None, 0)
    assert (request.sampler, request.eta) == ("ddpm", 0)


def test_seed_is_drawn_again_unless_locked(page: Page, painter: Painter) -> None:
    open_page(page)
    seed = page.get_by_label("Seed")
    first = seed.input_value()
    assert generate(page, painter).request.seed == int(first)
    expect(seed).not_to_have_value(first)
    second = seed.input_value()
    page.get_by_role("button", name="Reroll").click()
    expect(seed).not_to_have_value(second)
    page.get_by_role("button", name="Lock").click()
    seed.fill(str(2**63 - 1))  # more digits than a number in the browser keeps
    assert generate(page, painter).request.seed == 2**63 - 1
    expect(seed).to_have_value(str(2**63 - 1))
    expect(page.locator("#request-facts")).to_contain_text(str(2**63 - 1))


@pytest.mark.refused(422)
@pytest.mark.parametrize(
    ("label", "name", "value"),
    [("Steps", "steps", "0"), ("Guidance scale", "guidance_scale", "51"), ("Seed", "seed", "x")],
)
def test_refused_field_says_why_beside_itself(
    page: Page, painter: Painter, client: httpx2.Client, label: str, name: str, value: str
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


@pytest.mark.refused(422)
def test_negative_seed_is_refused_in_the_words_of_the_api(page: Page, painter: Painter, client: httpx2.Client) -> None:
    open_page(page)
    page.get_by_label("Seed").fill("-1")
    page.get_by_role("button", name="Generate").click()
    (error,) = client.post("/v1/jobs", json=body(seed=-1)).json()["errors"]
    expect(page.locator("[data-field=seed] .field-error")).to_have_text(error["detail"])


@pytest.mark.parametrize("width", [1280, 390])
def test_number_of_six_digits_fits_its_field(page: Page, painter: Painter, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    open_page(page)
    for name in ("Steps", "Images"):
        field = page.get_by_label(name, exact=True)
        field.fill("100000")
        field.hover()  # with the buttons that step it, which take room
        assert field.evaluate("e => e.scrollWidth <= e.clientWidth"), name


@pytest.mark.process
def test_refusal_of_no_field_is_shown_with_the_time_to_try_again(
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
        painter.beat()  # the service took a while to start, and the limit is for workers that live
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("alert")).to_have_text(
            re.compile(r"\d+ s of work are queued for .* 'demo'.*; the limit is 1 s \(ADM_\w+\). Try again in \d+ s.")
        )


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


@pytest.mark.refused(422)
def test_error_of_a_field_takes_no_room_from_the_field_beside_it(page: Page, painter: Painter) -> None:
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
