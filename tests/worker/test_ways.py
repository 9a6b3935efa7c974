"""Each file that docs/architecture.md names on the way of a request or of an image has code that runs on that way."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import httpx2
import pytest
import uvicorn
from redis import Redis

from jobs.settings import Settings
from jobs.storage.files import FileStore
from service.app import create_app
from service.main import listen
from service.protocol import Limits, limited
from service.serving import Server
from tests.waiting import eventually
from tests.worker.conftest import Bench, OpenInbox
from tests.worker.programs import Shift
from worker.loaded_pipelines import LoadedPipelines
from worker.loop import Worker

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WAY = re.compile(r"^## The way of .*?(?=^## )", re.MULTILINE | re.DOTALL)
BODY = {"class_label": "torus", "steps": 2, "upsample": {"steps": 1}}


def ways() -> dict[int, list[str]]:
    """The files in the table of each way, by their number as the page states it."""
    found = {}
    for way in WAY.findall((ROOT / "docs/architecture.md").read_text()):
        table = "\n".join(line for line in way.splitlines() if line.startswith("|"))
        (stated,) = re.findall(r"passes through (\d+) files", way)
        found[int(stated)] = re.findall(r"`([\w/]+\.py)`", table)
    assert len(found) == 2, "the way of a request and that of an image"
    return found


@contextmanager
def files_run() -> Iterator[set[str]]:
    """The files whose code runs on threads that start within the block."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        files.add(frame.f_code.co_filename)

    threading.setprofile(note)
    try:
        yield files
    finally:
        threading.setprofile(None)


@contextmanager
def running_server(settings: Settings) -> Iterator[httpx2.Client]:
    """The service on a thread of this process."""
    app, listener = create_app(settings), listen(settings)
    config = uvicorn.Config(app, http=limited(Limits(64, 64, 65_536, 1 << 20, 60.0)), ws="none", log_config=None)
    server = Server(config, app, lambda _: None)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    eventually(lambda: server.started, "the service starts")
    host, port = listener.getsockname()[:2]
    try:
        with httpx2.Client(base_url=f"http://{host}:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def worker(
    loaded: LoadedPipelines, open_inbox: OpenInbox, bench: Bench, redis: Redis, settings: Settings
) -> Callable[[], Worker]:
    files = FileStore(redis, settings, bench.images.objects)
    return lambda: Worker(loaded, open_inbox(), bench.images, files, settings)


def test_each_file_that_the_architecture_names_on_a_way_runs_for_a_job(
    worker: Callable[[], Worker], settings: Settings
) -> None:
    with files_run() as files, running_server(settings.model_copy(update={"port": 0})) as client:
        shift = Shift(worker())
        try:
            job = client.post("/v1/jobs", json=BODY).raise_for_status().json()
            events = client.get(f"/v1/jobs/{job['id']}/events").text
        finally:
            shift.end()
    assert "event: completed" in events
    named = {name for way in ways().values() for name in way}
    assert {name for name in named if str(ROOT / name) not in files} == set()


def test_numbers_of_files_in_the_architecture_are_those_of_its_tables() -> None:
    assert {stated: len(set(way)) for stated, way in ways().items()} == {stated: stated for stated in ways()}
