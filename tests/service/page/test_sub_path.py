"""The page of a service that a proxy publishes under a path, which the proxy does not strip."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from jobs.settings import Settings
from tests.service.conftest import running_service
from tests.service.page.painter import Painter, generate


@pytest.fixture(scope="module")
def service_settings(service_settings: Settings) -> Settings:
    return service_settings.model_copy(update={"root_path": "/adm"})


@pytest.fixture(scope="module")
def address(service_settings: Settings) -> Iterator[str]:
    with running_service(service_settings) as (address, _, _):
        yield address


@pytest.mark.browser
@pytest.mark.slow
def test_page_makes_images_under_a_path(page: Page, painter: Painter) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/adm/")
    claim = generate(page, painter)
    painter.finish(claim)
    expect(page.locator("#picture")).to_have_attribute("src", f"/adm/v1/jobs/{claim.job_id}/images/0")
    assert not [url for url in asked if "/adm/" not in url and not url.startswith(("data:", "blob:"))]
