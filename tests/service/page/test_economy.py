"""The page in a real Chromium keeps within its limits of memory and of calls to the service."""

import os
from collections.abc import Callable
from itertools import pairwise

import httpx2
import pytest
from playwright.sync_api import Page, Request, expect

from jobs.queue.events import Preview
from tests.jobs.samples import chunk, png
from tests.service.conftest import body
from tests.service.page.painter import Painter, films, generate, open_page
from worker.claim import Claim

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MIB = 2**20
POLL_MS = 2000  # between two looks of the page at the queue
HELD_BYTES = "[...new Set([...document.images].map((each) => each.src))].reduce((sum, src) => sum + src.length, 0)"


def large(size: int) -> bytes:
    """A PNG of about `size` bytes that cannot be compressed; no two are equal."""
    plain = png(9, 4)
    return plain[:-12] + chunk(b"adMm", os.urandom(size)) + plain[-12:]  # before IEND


def paint_large(painter: Painter, claim: Claim, step: int, size: int) -> None:
    painter.inbox.reports.preview(claim, Preview(0, "base", step, 100, large(size)))


def asked(page: Page) -> list[str]:
    """Paths that the page asks for from here on."""
    paths: list[str] = []

    def note(request: Request) -> None:
        paths.append(request.url.partition("/v1/")[2])

    page.on("request", note)
    return paths


def look_again(page: Page, *, when: Callable[[str], bool]) -> None:
    """Let the page's clock run until an answer comes from a URL that `when` accepts."""
    with page.expect_response(lambda response: when(response.url)):
        page.clock.run_for(POLL_MS)


def looks_at_queue(url: str) -> bool:
    return "status=queued" in url


def test_previews_of_a_job_stay_within_their_bytes_and_are_spread_over_all_its_steps(
    page: Page, painter: Painter
) -> None:
    open_page(page)
    claim = generate(page, painter)
    for step in range(1, 31):  # 40 MiB as data URLs
        paint_large(painter, claim, step, MIB)
        expect(page.locator("#caption")).to_contain_text(f"Base step {step} of 100")
        assert page.evaluate(HELD_BYTES) <= 16 * MIB
    kept = [int(each) for each in films(page).all_inner_texts()]
    assert (kept[0], kept[-1], len(kept)) == (1, 30, 11)  # as many as fit
    assert max(later - earlier for earlier, later in pairwise(kept)) <= 4


def test_oldest_jobs_lose_their_previews_first(page: Page, painter: Painter) -> None:
    open_page(page)
    for _ in range(6):  # 72 MiB as data URLs, where 64 are kept
        claim = generate(page, painter)
        for step in (1, 2, 3):
            paint_large(painter, claim, step, 3 * MIB)
            expect(page.locator("#caption")).to_contain_text(f"Base step {step} of 100")
        painter.finish(claim)
        expect(page.locator("#caption")).to_contain_text("Finished")
    expect(page.locator("#tiles .active")).to_have_count(0)  # of the last job, beside its finished image
    tiles = page.locator("#tiles .tile-picture")
    tiles.nth(5).click()
    expect(page.locator("#caption")).to_contain_text("Make it again with its seed to watch its steps.")
    for newer in (4, 0):
        tiles.nth(newer).click()
        expect(films(page)).to_have_count(4)


def test_places_of_all_queued_jobs_are_asked_for_in_one_call(
    page: Page, painter: Painter, client: httpx2.Client
) -> None:
    ids = [client.post("/v1/jobs", json=body()).json()["id"] for _ in range(12)]
    page.clock.install()
    open_page(page)
    expect(page.locator("#tiles .active")).to_have_count(12)
    paths = asked(page)
    for _ in range(3):
        look_again(page, when=looks_at_queue)
    assert len([each for each in paths if looks_at_queue(each)]) == 3
    assert [each for each in paths if each.removeprefix("jobs/") in ids] == []
    client.post(f"/v1/jobs/{ids[0]}/cancel")  # the oldest, which has no stream of events
    look_again(page, when=lambda url: url.endswith(ids[0]))
    expect(page.locator("#tiles .active")).to_have_count(11)


def test_end_of_a_job_behind_a_hundred_newer_ones_is_noticed(
    page: Page, painter: Painter, client: httpx2.Client
) -> None:
    ids = [client.post("/v1/jobs", json=body()).json()["id"] for _ in range(12)]
    page.clock.install()
    open_page(page)
    expect(page.locator("#tiles .active")).to_have_count(12)
    for _ in range(110):
        client.post("/v1/jobs", json=body())
    client.post(f"/v1/jobs/{ids[0]}/cancel")
    look_again(page, when=looks_at_queue)
    look_again(page, when=lambda url: looks_at_queue(url) and "after=" in url)
    expect(page.locator("#tiles .active")).to_have_count(11)


def test_names_of_classes_are_sent_again_only_when_they_change(
    page: Page, painter: Painter, client: httpx2.Client
) -> None:
    page.clock.install()
    open_page(page)
    for _ in range(2):
        with page.expect_response("**/v1/models") as answer:
            page.clock.run_for(5000)
        assert (answer.value.status, page.locator("#classes label").count()) == (304, 11)
    expect(page.locator("#served-by")).to_have_text("Served by cpu-0")
    painter.inbox.close()
    with page.expect_response("**/v1/models") as answer:
        page.clock.run_for(5000)
    assert answer.value.status == 200
    expect(page.locator("#served-by")).to_contain_text("No worker serves this pipeline")
