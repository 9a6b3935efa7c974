"""axe-core finds nothing against WCAG 2.1 AA on any page, in any state, light and dark, wide and on a phone."""

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from jobs.contract.caller import Role
from tests.jobs.samples import SWEEP
from tests.service.conftest import MakeKey, body
from tests.service.page.painter import Painter, films, generate, open_page
from tests.service.page.test_sign_in import sign_in

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
RULES = {"runOnly": {"type": "tag", "values": TAGS}, "resultTypes": ["violations"]}
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(params=["light, wide", "dark, wide", "light, phone", "dark, phone"])
def page(page: Page, request: pytest.FixtureRequest) -> Page:
    scheme, size = request.param.split(", ")
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size(PHONE if size == "phone" else DESK)  # type: ignore[arg-type] # its own type of such a mapping
    return page


def violations(page: Page) -> list[str]:
    """The findings of axe-core: the rule, and the elements that break it."""
    found = Axe().run(page, options=RULES).response["violations"]
    return [f"{each['id']}: {[node['html'][:200] for node in each['nodes']]}" for each in found]


def test_first_visit_breaks_no_rule(page: Page, painter: Painter) -> None:
    open_page(page)
    expect(page.locator("#example")).to_be_visible()
    assert violations(page) == []
    page.locator("#form details:last-of-type summary").click()
    assert violations(page) == []


def test_jobs_in_every_state_break_no_rule(page: Page, painter: Painter, client: httpx2.Client) -> None:
    open_page(page)
    page.get_by_label("Images").fill("3")
    claim = generate(page, painter)
    for step in (1, 2, 3):
        painter.step(claim, "base", step, 3, grey=60 * step)
    expect(films(page)).to_have_count(3)
    assert violations(page) == []
    painter.finish(claim)
    expect(page.locator("#tiles img[src*='/images/']")).to_have_count(3)
    client.post("/v1/jobs", json=body())
    page.locator("#tiles .pick input").first.check()
    page.get_by_label("Metadata").fill("wrong")
    expect(page.locator("#filter-note")).not_to_be_empty()
    page.locator("#job-source summary").click()
    assert violations(page) == []


@pytest.mark.refused(422)
def test_grid_and_trade_off_break_no_rule(page: Page, painter: Painter) -> None:
    painter.announce_sweep(SWEEP)
    open_page(page)
    expect(page.locator("#trade-off")).to_be_visible()
    page.get_by_role("radio", name="DDIM").check(force=True)
    page.locator("#trade-off summary").click()
    page.locator("#grid-form summary").click()
    page.locator("#grid-x-values").fill("0, 60")
    page.locator("#make-grid").click()
    expect(page.locator("#grid-x-error")).to_be_visible()
    assert violations(page) == []
    page.locator("#grid-x-values").fill("0, 2")
    page.locator("#make-grid").click()
    expect(page.locator(".grid-cell")).to_have_count(6)
    assert violations(page) == []
    for claim in painter.claims(6):
        painter.finish(claim)
    expect(page.locator("#grid-sheet")).to_be_visible()
    assert violations(page) == []


@pytest.mark.refused(422)
def test_errors_and_questions_break_no_rule(page: Page, painter: Painter, client: httpx2.Client) -> None:
    client.post("/v1/jobs", json=body())
    open_page(page)
    page.get_by_label("Steps", exact=True).fill("0")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".field-error")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("button", name="Cancel all my jobs").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert violations(page) == []


@pytest.mark.refused(401)
def test_sign_in_breaks_no_rule(page: Page, painter: Painter, make_key: MakeKey) -> None:
    headers = make_key()
    for path in ("/runs", "/operator", "/"):
        page.goto(path)
        expect(page.locator("#sign-in")).to_be_visible()
        assert violations(page) == []
    page.get_by_label("Key").fill("adm_wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#sign-in-error")).to_be_visible()
    assert violations(page) == []
    sign_in(page, headers)
    expect(page.locator("#caller")).to_have_text("ann, user")
    assert violations(page) == []


@pytest.mark.refused(401)
def test_operators_view_breaks_no_rule(page: Page, painter: Painter, client: httpx2.Client, make_key: MakeKey) -> None:
    client.post("/v1/jobs", json=body(), headers=make_key("ann"))
    sign_in(page, make_key("root", Role.OPERATOR))
    page.get_by_role("link", name="Operator").click()
    expect(page.locator("#callers th")).to_have_text("ann")
    assert violations(page) == []


@pytest.mark.refused(404)
def test_training_runs_break_no_rule(page: Page, painter: Painter) -> None:
    page.goto("/runs")
    expect(page.locator("#state")).not_to_have_text("Reading runs…")
    assert violations(page) == []
