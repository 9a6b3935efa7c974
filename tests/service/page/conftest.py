"""Chromium, a page whose console must stay without complaints, and a painter."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)
from redis import Redis

from jobs.settings import Settings
from tests.conftest import RedisServer
from tests.service.conftest import MakeKey
from tests.service.page.painter import WAIT_MS, Painter

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
TELL_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => console.error(`CSP: ${event.violatedDirective}`));
"""


@pytest.fixture(scope="module")  # Playwright holds a running event loop, in which others could run none
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.fail(f"the page's tests need {CHROMIUM}: `make browser`, or `apt-get install chromium`")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*ARGUMENTS, "--disable-sync"], timeout=60_000
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str, make_key: MakeKey, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page whose test fails if it complains; `refused(STATUS)` names the refused calls that the browser will note.

    It is closed before `make_key` removes the jobs with the keys: it may still be fetching their images.

    The browser may note a refused call after the page has already shown its effect, so the complaints are read when the
    page is closed.
    """
    errors: list[str] = []
    refused = [str(status) for mark in request.node.iter_markers("refused") for status in mark.args]
    notes = tuple(f"Failed to load resource: the server responded with a status of {status} " for status in refused)

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(notes):
            errors.append(message.text)

    context = browser.new_context(base_url=address, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(WAIT_MS)
    context.add_init_script(TELL_VIOLATIONS)
    page = context.new_page()
    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []


@pytest.fixture
def painter(redis_server: RedisServer, redis: Redis, service_settings: Settings) -> Iterator[Painter]:
    own = redis_server.client()
    painter = Painter(own, service_settings)
    yield painter
    painter.inbox.close()
    own.close()
