"""The page of training runs, in a browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from jobs.contract.caller import Role
from jobs.settings import Settings
from tests.runfolder import write_run
from tests.service.conftest import MakeKey, running_service
from tests.service.page.test_everybody import no_horizontal_scroll
from tests.service.page.test_sign_in import sign_in


@pytest.fixture(scope="module")
def address(service_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "one", started_at=2.0)
    write_run(folder / "a-stack-with-a-long-name" / "classifier", steps=60, started_at=1.0)
    write_run(folder / "without-grids", started_at=0.5, grids=False)
    settings = service_settings.model_copy(update={"runs": Path(folder)})
    with running_service(settings) as (address, _, _):
        yield address


def test_newest_run_shows_its_curves_and_its_last_grid(page: Page) -> None:
    page.goto("/runs")
    expect(page.locator("#list li")).to_have_count(3)
    expect(page.locator("#curves figure")).to_have_count(3)
    expect(page.get_by_role("img", name="loss by step")).to_be_visible()
    expect(page.get_by_role("img", name="loss, quarter 1 of the timesteps by step")).to_be_visible()
    expect(page.get_by_role("img", name="one, step 100")).to_be_visible()


@pytest.mark.refused(401)
def test_stranger_signs_in_on_the_page_itself(page: Page, make_key: MakeKey) -> None:
    sign_in(page, make_key("root", Role.OPERATOR), "/runs")
    expect(page.locator("#list li")).to_have_count(3)
    expect(page.locator("#sign-in")).to_be_hidden()


def test_runs_are_laid_side_by_side(page: Page) -> None:
    page.goto("/runs")
    page.get_by_role("checkbox", name="classifier diffusion").check()
    expect(page.locator("#curves figure").first.locator("polyline")).to_have_count(2)
    expect(page.locator("#grids figure")).to_have_count(2)


def test_run_without_grids_has_no_empty_heading(page: Page) -> None:
    page.goto("/runs")
    page.get_by_role("checkbox", name="without-grids").check()
    expect(page.get_by_role("heading", name="Sample grids")).to_be_visible()
    page.get_by_role("checkbox", name="one diffusion").uncheck()
    expect(page.get_by_role("heading", name="Sample grids")).to_be_hidden()


def test_slider_shows_an_earlier_grid(page: Page) -> None:
    page.goto("/runs")
    page.get_by_label("Preview of one").fill("0")
    expect(page.get_by_role("img", name="one, step 50")).to_be_visible()


@pytest.mark.parametrize("width", [1280, 390])
def test_headings_stand_below_the_pages_title(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.goto("/runs")
    title, heading = (
        page.get_by_role("heading", name=name, exact=True).bounding_box() for name in ("Training runs", "Runs")
    )
    assert title is not None
    assert heading is not None
    assert title["x"] == heading["x"]


def test_runs_need_no_horizontal_scroll_on_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto("/runs")
    expect(page.locator("#list li")).to_have_count(3)
    assert no_horizontal_scroll(page)
