"""The page where callers have keys: it asks for one, sends it with every call, and shows it nowhere."""

import re
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.sync_api import Page, Request, Route, expect
from redis import Redis

from jobs.callers.keyring import KeyStore
from tests.jobs.samples import png
from tests.service.conftest import MakeKey, body
from tests.service.page.painter import Painter, films, generate

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def sign_in(page: Page, headers: dict[str, str], path: str = "/") -> str:
    """Give the page a key; returns it."""
    key = headers["Authorization"].removeprefix("Bearer ")
    page.goto(path)
    page.get_by_label("Key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#sign-out")).to_be_visible()  # the page was loaded anew, and its script has run
    return key


@pytest.mark.refused(401)
def test_page_asks_for_a_key_and_works_with_a_right_one_alone(page: Page, painter: Painter, make_key: MakeKey) -> None:
    headers, urls = make_key(), list[Request]()

    def note(request: Request) -> None:
        urls.append(request)

    page.on("request", note)
    page.goto("/")
    expect(page.locator("#sign-in")).to_be_visible()
    expect(page.locator("main")).to_be_hidden()
    expect(page.get_by_label("Key")).to_be_focused()
    page.get_by_label("Key").fill("adm_wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#sign-in-error")).to_contain_text("wrong or was revoked")
    key = sign_in(page, headers)
    claim = generate(page, painter)
    painter.step(claim, "base", 1, 25, grey=9)
    expect(films(page)).to_have_count(1)
    painter.finish(claim)
    expect(page.locator("#picture")).to_have_attribute("src", re.compile("^blob:"))
    expect(page.locator("#tiles img")).to_have_attribute("src", re.compile("^blob:"))
    expect(page.locator("#picture")).to_have_js_property("naturalWidth", 8)
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.path().read_bytes() == png(200, 8)
    assert not [each.url for each in urls if key[17:] in each.url]
    called = [each for each in urls if urlsplit(each.url).path.startswith("/v1/")]
    assert {each.header_value("authorization") for each in called[-3:]} == {f"Bearer {key}"}
    assert key not in page.content()
    assert page.evaluate("Object.keys(localStorage).every((each) => !localStorage[each].includes('adm_'))")
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#sign-in")).to_be_visible()
    page.reload()
    expect(page.locator("#sign-in")).to_be_visible()


@pytest.mark.refused(401)
def test_form_keeps_the_margin_of_the_page_on_a_phone(page: Page, painter: Painter, make_key: MakeKey) -> None:
    make_key()
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/")
    expect(page.locator("#sign-in")).to_be_visible()
    form, title = page.locator("#sign-in").bounding_box(), page.locator("h1").bounding_box()
    assert form is not None
    assert title is not None
    assert form["x"] == title["x"] == 390 - (form["x"] + form["width"])


@pytest.mark.refused(401)
def test_another_tab_has_no_key(page: Page, painter: Painter, make_key: MakeKey) -> None:
    sign_in(page, make_key())
    other = page.context.new_page()
    other.goto("/")
    expect(other.locator("#sign-in")).to_be_visible()


@pytest.mark.refused(401)
def test_key_that_is_revoked_leads_back_to_the_form(
    page: Page, painter: Painter, make_key: MakeKey, redis: Redis
) -> None:
    sign_in(page, make_key("ann"))
    claim = generate(page, painter)
    KeyStore(redis).revoke("ann")
    painter.finish(claim)
    expect(page.locator("#sign-in")).to_be_visible()
    expect(page.locator("main")).to_be_hidden()


@pytest.mark.refused(401)
def test_late_refusal_of_calls_without_a_key_undoes_no_sign_in(page: Page, painter: Painter, make_key: MakeKey) -> None:
    headers, late, signing_in = make_key(), list[Route](), list[Route]()

    def hold(route: Route) -> None:
        (late if "authorization" not in route.request.headers else signing_in).append(route)

    page.route(re.compile("/v1/(models|workers)$"), hold)
    page.route(re.compile(r"/v1/jobs\?limit=1$"), hold)
    page.goto("/")
    page.get_by_label("Key").fill(headers["Authorization"].removeprefix("Bearer "))
    with page.expect_request(re.compile(r"/v1/jobs\?limit=1$")) as request:
        page.get_by_role("button", name="Sign in").click()
    assert request.value.header_value("authorization") == headers["Authorization"]
    page.unroute(re.compile("/v1/(models|workers)$"))
    for each in late:
        each.continue_()
    expect(page.locator("#fleet")).to_have_attribute("data-state", "unavailable")  # the page has read the refusal
    signing_in[0].continue_()
    expect(page.locator("#sign-out")).to_be_visible()
    expect(page.locator("#sign-in")).to_be_hidden()


@pytest.mark.refused(401)
def test_page_shows_own_jobs_and_ones_place_among_all(
    page: Page, painter: Painter, make_key: MakeKey, address: str
) -> None:
    ann, bob = make_key("ann"), make_key("bob")
    for headers in (bob, bob, bob, ann):
        httpx2.post(f"{address}/v1/jobs", json=body(n=64), headers=headers, timeout=60).raise_for_status()
    sign_in(page, ann)
    expect(page.locator("#tiles li")).to_have_count(1)
    page.get_by_label("Images").fill("64")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#progress-text")).to_have_text("3 before it in the queue, 1 of them yours")
    expect(page.locator("#tiles li")).to_have_count(2)
    expect(page.locator("#fleet")).to_contain_text("Worker cpu-0")


@pytest.mark.refused(401)
def test_command_to_copy_names_the_variable_of_the_key(page: Page, painter: Painter, make_key: MakeKey) -> None:
    key = sign_in(page, make_key())
    page.locator("#form details:last-of-type summary").click()
    expect(page.locator("#form-source")).to_contain_text("Authorization: Bearer $ADM_API_KEY")
    assert key not in page.content()


@pytest.mark.refused(401)
def test_own_picture_is_shown_where_an_image_can_send_no_key(page: Page, painter: Painter, make_key: MakeKey) -> None:
    sign_in(page, make_key())
    files = [{"name": "mine.png", "mimeType": "image/png", "buffer": png(7, 8)}]
    page.locator("#slot-0 input").set_input_files(files)  # type: ignore[arg-type] # its own type of such a mapping
    expect(page.locator("#slot-0 img")).to_have_attribute("src", re.compile("^blob:"))
    expect(page.locator("#slot-0 img")).to_have_js_property("naturalWidth", 8)
