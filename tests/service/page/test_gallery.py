"""The gallery in a real Chromium: filters, selected images as one archive, cancelling all of one's own jobs."""

import io
import re
from zipfile import ZipFile

import httpx2
import pytest
from playwright.sync_api import Page, expect
from redis import Redis

from jobs.contract.caller import Role
from jobs.contract.pipelines import ClassInfo
from jobs.redis import keys
from tests.jobs.samples import DEMO, png
from tests.service.conftest import MakeKey, body
from tests.service.page.painter import Painter, generate, open_page
from tests.service.page.test_sign_in import sign_in

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# Made in the page: Playwright would take minutes to hand over so many bytes on a busy machine.
ENDLESS_ARCHIVE = """() => {
  const [ask, piece] = [window.fetch, new Uint8Array(2 ** 20)];
  const endless = () => new Response(new ReadableStream({ pull: (stream) => stream.enqueue(piece) }));
  window.fetch = async (url, options) => (String(url).includes("/v1/images.zip") ? endless() : ask(url, options));
}"""


def finished(client: httpx2.Client, painter: Painter, headers: dict[str, str] | None = None, **fields: object) -> str:
    """A completed job."""
    job_id = str(client.post("/v1/jobs", json=body(**fields), headers=headers).json()["id"])
    painter.finish(painter.claim())
    return job_id


def archive(page: Page, button: str) -> dict[str, bytes]:
    """The file that the browser saves when a button is pressed."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    assert download.value.suggested_filename == "images.zip"
    with ZipFile(io.BytesIO(download.value.path().read_bytes())) as zipped:
        return {each: zipped.read(each) for each in zipped.namelist()}


def test_filters_show_the_jobs_that_have_all_of_it(page: Page, painter: Painter, client: httpx2.Client) -> None:
    finished(client, painter, metadata={"run": "1"})
    finished(client, painter, class_label="cone", metadata={"run": "1"})
    finished(client, painter, model="demo-uncond", class_label=None, guidance_scale=0)
    open_page(page)
    tiles = page.locator("#tiles li")
    expect(tiles).to_have_count(3)
    filters = page.get_by_role("search")
    filters.get_by_label("Metadata").fill("run=1")
    expect(tiles).to_have_count(2)
    filters.get_by_label("Class").fill("cone")
    expect(tiles).to_have_count(1)
    expect(tiles).to_contain_text("cone")
    filters.get_by_label("Model").select_option("demo-uncond")
    expect(page.locator("#gallery-empty")).to_have_text("No job matches.")
    page.get_by_role("button", name="Show all").click()
    expect(tiles).to_have_count(3)
    filters.get_by_label("Metadata").fill("run")
    expect(page.locator("#filter-note")).to_have_text("Metadata is given as key=value.")


def test_filter_finds_jobs_that_the_page_had_not_loaded(page: Page, painter: Painter, client: httpx2.Client) -> None:
    finished(client, painter, class_label="cone")
    for _ in range(2):
        client.post("/v1/jobs", json={"items": [body(steps=1)] * 30})
    open_page(page)
    expect(page.locator("#tiles li")).to_have_count(40)
    page.get_by_role("search").get_by_label("Class").fill("cone")
    expect(page.locator("#tiles li")).to_have_count(1)


def test_selected_images_are_saved_as_one_archive(page: Page, painter: Painter, client: httpx2.Client) -> None:
    job_id, other = finished(client, painter, n=2), finished(client, painter, class_label="cone")
    open_page(page)
    expect(page.locator("#tiles li")).to_have_count(3)
    page.get_by_role("checkbox", name=re.compile("Select cone")).check()
    page.get_by_role("checkbox", name=re.compile("Select torus.*image 1")).check()
    expect(page.get_by_role("button", name="Download 2 as zip")).to_be_visible()
    assert archive(page, "Download 2 as zip") == {f"{other}/00.png": png(200, 8), f"{job_id}/01.png": png(201, 8)}
    page.get_by_role("button", name="Select all").click()
    assert len(archive(page, "Download 3 as zip")) == 3
    page.get_by_role("button", name="Select none").click()
    expect(page.locator("#zip")).to_be_hidden()


def test_image_that_is_filtered_out_is_not_selected_any_more(
    page: Page, painter: Painter, client: httpx2.Client
) -> None:
    finished(client, painter)
    job_id = finished(client, painter, class_label="cone")
    open_page(page)
    page.get_by_role("button", name="Select all").click()
    page.get_by_role("search").get_by_label("Class").fill("cone")
    expect(page.get_by_role("button", name="Download 1 as zip")).to_be_visible()
    assert archive(page, "Download 1 as zip") == {f"{job_id}/00.png": png(200, 8)}


@pytest.mark.refused(401)
def test_archive_is_fetched_with_the_key_and_not_kept_above_its_limit_of_bytes(
    page: Page, painter: Painter, client: httpx2.Client, make_key: MakeKey
) -> None:
    ann = make_key("ann")
    job_id = finished(client, painter, ann)
    sign_in(page, ann)
    page.get_by_role("button", name="Select all").click()
    assert archive(page, "Download 1 as zip") == {f"{job_id}/00.png": png(200, 8)}
    page.evaluate(ENDLESS_ARCHIVE)
    page.get_by_role("button", name="Download 1 as zip").click()
    expect(page.locator("#gallery-note")).to_contain_text("more than 64 MiB")


@pytest.mark.refused(401)
def test_all_own_jobs_are_cancelled_after_a_question_and_nobody_elses(
    page: Page, painter: Painter, client: httpx2.Client, make_key: MakeKey
) -> None:
    ann, root = make_key("ann"), make_key("root", Role.OPERATOR)
    theirs = [each["id"] for each in client.post("/v1/jobs", json={"items": [body()] * 3}, headers=ann).json()["data"]]
    client.post("/v1/jobs", json={"items": [body()] * 64}, headers=root)
    client.post("/v1/jobs", json={"items": [body()] * 64}, headers=root)
    sign_in(page, root)
    page.get_by_role("button", name="Cancel all my jobs").click()
    page.get_by_role("button", name="Keep them").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#tiles .active")).not_to_have_count(0)
    page.get_by_role("button", name="Cancel all my jobs").click()
    expect(page.locator("#cancel-all-text")).to_contain_text("Those of other callers continue.")
    page.get_by_role("button", name="Cancel them").click()
    expect(page.locator("#gallery-note")).to_have_text("128 jobs were cancelled.")
    expect(page.locator("#cancel-all")).to_be_hidden()
    left = client.get("/v1/jobs", params={"status": "queued", "limit": 100}, headers=root).json()["data"]
    assert [each["id"] for each in left] == theirs[::-1]


@pytest.mark.refused(401)
def test_page_of_an_operator_shows_its_own_jobs_alone(
    page: Page, painter: Painter, client: httpx2.Client, make_key: MakeKey
) -> None:
    root = make_key("root", Role.OPERATOR)
    finished(client, painter, make_key("ann"))
    finished(client, painter, root, class_label="cone")
    sign_in(page, root)
    expect(page.locator("#tiles li")).to_have_count(1)
    expect(page.locator("#tiles li")).to_contain_text("cone")
    expect(page.locator("#caller")).to_have_text("root, operator")


def test_keyboard_alone_selects_filters_and_cancels(page: Page, painter: Painter, client: httpx2.Client) -> None:
    finished(client, painter)
    client.post("/v1/jobs", json=body())
    open_page(page)
    page.locator("#filter-class").focus()
    page.keyboard.type("torus")
    page.locator("#cancel-all").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep them")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#gallery-note")).to_have_text("1 job was cancelled.")
    expect(page.locator("#gallery-title")).to_be_focused()
    with page.expect_response("**/v1/jobs?*class_label=cone*"):
        page.locator("#filter-class").fill("cone")
    expect(page.locator("#gallery-empty")).to_have_text("No job matches.")
    expect(page.locator("#gallery-note")).to_have_text("1 job was cancelled.")
    page.locator("#filter-class").fill("torus")
    expect(page.locator("#tiles li")).to_have_count(1)
    page.locator("#gallery-title").focus()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.pick input')"):
            break
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Download 1 as zip")).to_be_visible()


def test_large_images_are_fetched_small_for_the_gallery(page: Page, painter: Painter, client: httpx2.Client) -> None:
    client.post("/v1/jobs", json=body(n=2))
    claim = painter.claim()
    records = [painter.images.put(claim.job_id, claim.token, index, png(9, 512)) for index in range(2)]
    painter.complete(claim, records)
    open_page(page)
    expect(page.locator("#tiles img").first).to_have_attribute("src", re.compile(r"/images/0\?size=256$"))
    expect(page.locator("#siblings img").last).to_have_attribute("src", re.compile(r"/images/1\?size=128$"))
    expect(page.locator("#picture")).to_have_attribute("src", re.compile(r"/images/0$"))
    expect(page.locator("#tiles img").first).to_have_js_property("naturalWidth", 256)


def test_html_in_names_and_metadata_is_shown_as_text(
    page: Page, painter: Painter, client: httpx2.Client, redis: Redis
) -> None:
    html = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    finished(client, painter, metadata={html: html}, user=html)
    classes = (ClassInfo(index=0, name=html), *DEMO.classes[1:])
    redis.hset(keys.PIPELINES, html, DEMO.model_copy(update={"id": html, "classes": classes}).model_dump_json())
    open_page(page)
    expect(page.locator("#request-facts")).to_contain_text(html)
    page.get_by_label("Model", exact=True).select_option(html)
    expect(page.locator("#classes")).to_contain_text(html)
    page.get_by_role("search").get_by_label("Class").fill(html)
    expect(page.locator("#gallery-empty")).to_be_visible()
    page.goto("/operator")
    expect(page.locator("#pipelines")).to_contain_text(html)
    assert page.locator("img[src=x]").count() == 0
    assert dialogs == []


def test_page_follows_what_is_generated_whatever_the_filter(
    page: Page, painter: Painter, client: httpx2.Client
) -> None:
    finished(client, painter, class_label="cone")
    open_page(page)
    page.get_by_role("search").get_by_label("Class").fill("cone")
    expect(page.locator("#filter-clear")).to_be_visible()
    painter.finish(generate(page, painter))
    expect(page.locator("#caption")).to_contain_text("Finished")
    expect(page.locator("#tiles li")).to_have_count(1)
