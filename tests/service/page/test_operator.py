"""The operator's view in a real Chromium: live figures for operators, and nothing for others."""

import re

import httpx2
import pytest
from playwright.sync_api import Page, expect

from jobs.contract.caller import Role
from tests.jobs.samples import worker_info
from tests.service.conftest import MakeKey, body
from tests.service.page.painter import Painter, open_page
from tests.service.page.test_everybody import no_horizontal_scroll
from tests.service.page.test_sign_in import sign_in

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ASK_MS = 2000  # between two looks of the page


def metrics(images: int, occupancy: float) -> str:
    return (
        f'# TYPE adm_images counter\nadm_images_total{{pipeline="demo"}} {images}\n'
        f"# TYPE adm_batch_occupancy gauge\nadm_batch_occupancy {occupancy}\n"
    )


def figure(page: Page, name: str) -> str:
    return page.locator("#figures div", has_text=name).locator("dd").inner_text()


@pytest.mark.refused(401)
def test_operator_sees_workers_queue_and_throughput_live(
    page: Page, painter: Painter, client: httpx2.Client, make_key: MakeKey
) -> None:
    ann, root = make_key("ann"), make_key("root", Role.OPERATOR)
    client.post("/v1/jobs", json={"items": [body(n=64)] * 3}, headers=ann)
    painter.measure(metrics(10, 0.75))
    page.clock.install()
    sign_in(page, root)
    page.get_by_role("link", name="Operator").click()
    expect(page.locator("#workers tr")).to_contain_text("cpu-0")
    expect(page.locator("#pipelines tr").first).to_have_text(re.compile(r"^demo\s*3"))
    expect(page.locator("#callers tr")).to_have_text(re.compile(r"^ann\s*3\s*0\s*demo 3$"))
    assert (figure(page, "Jobs queued"), figure(page, "Images a minute")) == ("3", "…")
    painter.claim()
    painter.measure(metrics(20, 0.75))
    page.clock.run_for(ASK_MS)
    expect(page.locator("#callers tr")).to_have_text(re.compile(r"^ann\s*2\s*1\s*demo 2$"))
    assert float(figure(page, "Images a minute")) > 0
    assert page.locator("#throughput polyline").get_attribute("points")


def test_occupancy_is_what_the_workers_last_batch_was(page: Page, painter: Painter) -> None:
    painter.measure(metrics(0, 0.75), rows_in_flight=64)
    page.goto("/operator")
    expect(page.locator("#workers .occupancy")).to_have_text("75 %")
    assert figure(page, "Occupancy") == "75 %"


def test_times_of_steps_name_a_pipeline_for_each_stage(page: Page, painter: Painter) -> None:
    shared = {"base": {16: 80.125}, "upsample": {16: 160.5}}
    times = {"demo": shared, "demo-uncond": shared, "fashion": {"base": {16: 79.75}}}
    painter.inbox.heartbeat(worker_info(step_ms=times), "")
    page.goto("/operator")
    expect(page.locator("#workers tr")).to_contain_text("demo base 80 ms, demo upsample 161 ms, fashion base 80 ms")


@pytest.mark.refused(404)
def test_runs_without_a_folder_are_one_line_that_names_the_setting(page: Page, painter: Painter) -> None:
    page.goto("/operator")
    page.get_by_role("link", name="Training runs").click()
    expect(page.locator("#state")).to_contain_text("set ADM_RUNS")
    expect(page.get_by_role("heading")).to_have_text(["Training runs"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_operators_view_needs_no_horizontal_scroll_on_a_phone(page: Page, painter: Painter, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto("/operator")
    expect(page.locator("#workers tr")).to_contain_text("cpu-0")
    assert no_horizontal_scroll(page)


def test_without_keys_everybody_is_shown_the_way_to_it(page: Page, painter: Painter) -> None:
    open_page(page)
    page.get_by_role("link", name="Operator").click()
    expect(page.locator("#fleet")).to_have_text("Live, 1 worker")


@pytest.mark.refused(401)
def test_user_is_neither_shown_the_way_nor_anything_there(
    page: Page, painter: Painter, client: httpx2.Client, make_key: MakeKey
) -> None:
    client.post("/v1/jobs", json=body(), headers=make_key("bob"))
    sign_in(page, make_key("ann"))
    expect(page.locator("#caller")).to_have_text("ann, user")
    expect(page.locator("#operator-link")).to_be_hidden()
    page.goto("/operator")
    expect(page.locator("#fleet")).to_contain_text("for keys of the role operator")
    expect(page.locator("tbody tr")).to_have_count(0)
    assert "bob" not in page.content()


@pytest.mark.refused(401)
def test_stranger_signs_in_on_the_page_itself(page: Page, painter: Painter, make_key: MakeKey) -> None:
    headers = make_key("root", Role.OPERATOR)
    sign_in(page, headers, "/operator")
    expect(page.locator("#fleet")).to_have_text("Live, 1 worker")
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#sign-in")).to_be_visible()
    expect(page.locator("main")).to_be_hidden()


def test_rate_of_less_than_a_minute_says_since_when_it_counts(page: Page, painter: Painter) -> None:
    painter.measure(metrics(10, 0.75))
    page.clock.install()
    page.goto("/operator")
    term = page.locator("#figures dt", has_text="Images a minute")
    expect(term).to_have_text("Images a minute since this page was opened")
    page.clock.run_for(60_000)
    expect(term).to_have_text("Images a minute")
