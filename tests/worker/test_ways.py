"""docs/architecture.md names the files on the ways of a request and of an image: code of each runs on its way.

Conversely, it names each file on the call stack where a request or an image reaches a thread, a process or the device.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from traceback import walk_stack
from types import FrameType

import httpx2
import pytest
import uvicorn
from redis import Redis

from engine.engine import Engine
from jobs.queue import transaction
from jobs.settings import Settings
from jobs.storage.files import FileStore
from jobs.storage.images import ImageStore
from models.networks.unet import UNet
from service.app import create_app
from service.batches import Batches
from service.main import listen
from service.protocol import Limits, limited
from service.serving import Server
from service.starts import Starts
from tests.waiting import eventually
from tests.worker.conftest import Bench, OpenInbox
from tests.worker.programs import Shift
from worker.loaded_pipelines import LoadedPipelines
from worker.loop import Worker

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WAY = re.compile(r"^## The way of .*?(?=^## )", re.MULTILINE | re.DOTALL)
ARRIVALS = {
    each.__code__ for each in (Starts.add, Batches.ask, transaction.commit, Engine.add, UNet.forward, ImageStore.put)
}
PACKAGES = {"service", "jobs", "worker", "engine"}  # not models/ and diffusion/, where the way ends
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


@dataclass
class Trace:
    """Files of the repository by their path in it: those whose code ran, and those on the stack at an arrival."""

    ran: set[str] = field(default_factory=set)
    handed_on: set[str] = field(default_factory=set)

    def note(self, frame: FrameType, event: str, argument: object) -> None:
        """A profile function, see `sys.setprofile`."""
        self.ran |= files_of([frame])
        if event == "call" and frame.f_code in ARRIVALS:
            self.handed_on |= files_of(each for each, _ in walk_stack(frame))


def files_of(frames: Iterable[FrameType]) -> set[str]:
    """The files of the repository whose code the frames run; none of libraries, whose paths may lie below it."""
    paths = {frame.f_code.co_filename.removeprefix(f"{ROOT}/") for frame in frames}
    return {path for path in paths if path.partition("/")[0] in PACKAGES}


@contextmanager
def traced() -> Iterator[Trace]:
    """Trace the threads that start within the block."""
    trace = Trace()
    threading.setprofile(trace.note)
    try:
        yield trace
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


def test_architecture_names_the_files_that_a_job_and_its_images_pass(
    worker: Callable[[], Worker], settings: Settings
) -> None:
    with traced() as trace, running_server(settings.model_copy(update={"port": 0})) as client:
        shift = Shift(worker())
        try:
            job = client.post("/v1/jobs", json=BODY).raise_for_status().json()
            events = client.get(f"/v1/jobs/{job['id']}/events").text
        finally:
            shift.end()
    assert "event: completed" in events
    named = {name for way in ways().values() for name in way}
    assert named - trace.ran == set(), "named, but does not run"
    assert trace.handed_on - named == set(), "hands the job or an image on, but is not named"


def test_numbers_of_files_in_the_architecture_are_those_of_its_tables() -> None:
    assert {stated: len(set(way)) for stated, way in ways().items()} == {stated: stated for stated in ways()}
