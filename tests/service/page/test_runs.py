"""The page of training runs, in a browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from jobs.settings import Settings
from tests.runfolder import write_run
from tests.service.conftest import running_service


@pytest.fixture(scope="module")
def address(service_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "one", started_at=2.0)
    write_run(folder / "other", steps=60, started_at=1.0)
    settings = service_settings.model_copy(update={"runs": Path(folder)})
    with running_service(settings) as (address, _, _):
        yield address


def test_newest_run_shows_its_curves_and_its_last_grid(page: Page) -> None:
    page.goto("/runs")
    expect(page.locator("#list li")).to_have_count(2)
    expect(page.locator("#curves figure")).to_have_count(3)
    expect(page.get_by_role("img", name="loss by step")).to_be_visible()
    expect(page.get_by_role("img", name="one, step 100")).to_be_visible()


def test_runs_are_laid_side_by_side(page: Page) -> None:
    page.goto("/runs")
    page.get_by_role("checkbox", name="other diffusion").check()
    expect(page.locator("#curves figure").first.locator("polyline")).to_have_count(2)
    expect(page.locator("#grids figure")).to_have_count(2)


def test_slider_shows_an_earlier_grid(page: Page) -> None:
    page.goto("/runs")
    page.get_by_label("Preview of one").fill("0")
    expect(page.get_by_role("img", name="one, step 50")).to_be_visible()
