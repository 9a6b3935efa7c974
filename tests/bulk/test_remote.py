"""`adm sample` through a real service: the same bytes as in process, and whatever goes wrong on the way."""

import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from pydantic import SecretStr
from redis import Redis
from rich.console import Console

from bulk.errors import BulkError
from bulk.remote import Remote
from bulk.run import RunOptions, run
from jobs.callers.keyring import IN_FORCE_SECONDS, NEEDED, KeyStore
from jobs.contract.caller import Role
from jobs.contract.errors import FailureKind
from jobs.redis import keys
from jobs.settings import Settings
from tests.bulk.programs import Sampling
from tests.conftest import RedisServer
from tests.service.conftest import ToyWorker, running_service
from tests.waiting import eventually
from tests.worker.programs import WorkerProcess, running_worker
from worker.claim import Claim

pytestmark = pytest.mark.slow

RUN = ("--count", "96", "--steps", "12", "--no-upsample", "--classes", "0,3", "--window", "32")


class FailingWorker(ToyWorker):
    """Fails what it claims."""

    def _make(self, claim: Claim) -> None:
        self.inbox.results.fail(
            claim, FailureKind.STEP_FAILED, "the engine could not compute this job's images", retry=False
        )


@pytest.fixture(scope="module")
def common(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a Redis of this module and of a worker on it, for the tests that let it live."""
    with running_worker(tmp_path_factory.mktemp("common"), weights) as settings:
        yield settings


@pytest.fixture(scope="module")
def common_address(common: Settings) -> Iterator[str]:
    with running_service(common) as (address, _, _):
        yield address


@pytest.fixture
def served(common_address: str) -> Iterator[str]:
    """The address of a service that has a worker; what a test leaves there is deleted."""
    yield common_address
    for job in jobs_at(common_address):
        httpx2.delete(f"{common_address}/v1/jobs/{job['id']}", timeout=60)


@pytest.fixture
def settings(redis_server: RedisServer, own_settings: Settings, redis: Redis) -> Settings:
    """Settings of a service, a worker and a client of one test."""
    return own_settings.model_copy(update={"redis_url": redis_server.address, "log_level": "info"})


@pytest.fixture
def address(settings: Settings) -> Iterator[str]:
    """A service that has no worker."""
    with running_service(settings) as (address, _, _):
        yield address


@contextmanager
def toy(kind: type[ToyWorker], redis_server: RedisServer, settings: Settings) -> Iterator[ToyWorker]:
    own = redis_server.client()
    worker = kind(own, settings)
    yield worker
    worker.stop()
    own.close()


def sampled(out: Path, address: str, window: int = 32, **options: object) -> str:
    asked = {"model": "demo", "count": 40, "upsample": False} | options
    return run(RunOptions(out, **asked), Remote(address, window), Console(file=io.StringIO()))  # type: ignore[arg-type]  # as options come


def in_background(action: Callable[[], object]) -> list[BaseException | None]:
    """Run an action in a thread; what it raised, None for nothing, is entered when it ends."""
    ended: list[BaseException | None] = []

    def act() -> None:
        try:
            action()
        except BulkError as error:
            ended.append(error)
        else:
            ended.append(None)

    Thread(target=act, daemon=True).start()
    return ended


def jobs_at(address: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = httpx2.get(f"{address}/v1/jobs", params={"limit": 100}, timeout=60).json()["data"]
    return found


@pytest.fixture(scope="module")
def in_process(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a service, on the settings of the worker."""
    folder = tmp_path_factory.mktemp("local")
    settings = Settings(data=folder, weights=weights, device="cpu", max_rows=8, threads=1)
    output = Sampling(settings, folder / "samples.npz", *RUN, "--local").end()
    assert (folder / "samples.npz").exists(), output
    return folder / "samples.npz"


def test_key_of_the_environment_opens_a_service_that_asks_for_one(
    common: Settings, common_address: str, tmp_path: Path
) -> None:
    with Redis.from_url(str(common.redis_url)) as redis:
        key = SecretStr(KeyStore(redis).create("sampler", Role.USER).key)
        try:
            with pytest.raises(BulkError, match=r"401: .*ADM_API_KEY"):
                sampled(tmp_path / "none.npz", common_address, count=2)
            options = RunOptions(tmp_path / "two.npz", "demo", count=2, steps=3, upsample=False)
            run(options, Remote(common_address, 32, key), Console(file=io.StringIO()))
        finally:
            (common.data / NEEDED).unlink()
            redis.delete(keys.API_KEYS, keys.API_KEYS_VERSION)
            time.sleep(IN_FORCE_SECONDS)
    assert np.load(tmp_path / "two.npz")["arr_0"].shape[0] == 2
    assert "adm_" not in (tmp_path / "two.npz.json").read_text()


def numerics_of(out: Path) -> object:
    return json.loads(out.with_name(f"{out.name}.json").read_text())["numerics"]


def test_service_gives_the_bytes_that_this_machine_gives_and_keeps_none(
    served: str, common: Settings, tmp_path: Path, in_process: Path
) -> None:
    out = tmp_path / "samples.npz"
    output = Sampling(common, out, *RUN, "--url", served).end()
    assert numerics_of(out) == numerics_of(in_process), output
    assert out.read_bytes() == in_process.read_bytes()
    assert jobs_at(served) == []


def test_service_on_the_port_of_the_environment_is_found_without_a_url(
    served: str, common: Settings, tmp_path: Path
) -> None:
    there = common.model_copy(update={"port": urlsplit(served).port})
    command = ("--count", "3", "--steps", "2", "--no-upsample", "--classes", "0,3")
    output = Sampling(there, tmp_path / "samples.npz", *command).end()
    assert np.load(tmp_path / "samples.npz")["arr_0"].shape[0] == 3, output


def test_base_samples_through_the_service_are_the_bytes_of_this_machine_and_none_stay(
    served: str, common: Settings, tmp_path: Path
) -> None:
    np.savez(tmp_path / "base.npz", np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    asked = ("--base-samples", str(tmp_path / "base.npz"), "--upsample-steps", "3")
    output = [
        Sampling(common, tmp_path / "remote.npz", *asked, "--url", served).end(),
        Sampling(common, tmp_path / "local.npz", *asked, "--local").end(),
    ]
    assert (tmp_path / "remote.npz").exists(), output
    assert (tmp_path / "remote.npz").read_bytes() == (tmp_path / "local.npz").read_bytes(), output
    assert not any(path.is_file() for path in (common.data / "images" / "files").rglob("*"))
    assert jobs_at(served) == []


def test_client_killed_repeatedly_ends_with_the_same_bytes(
    served: str, common: Settings, tmp_path: Path, in_process: Path
) -> None:
    out = tmp_path / "samples.npz"
    for parts in (0, 1, 3):
        run_ = Sampling(common, out, *RUN, "--url", served)
        eventually(lambda: jobs_at(served), "a job is queued")
        run_.wait_parts(parts)
        run_.kill()
    output = Sampling(common, out, *RUN, "--url", served).end()
    assert out.read_bytes() == in_process.read_bytes(), output
    assert len(jobs_at(served)) <= 3  # of each kill, at most what was kept and not yet deleted


def test_run_started_through_the_service_may_end_on_this_machine(
    served: str, common: Settings, tmp_path: Path, in_process: Path
) -> None:
    out = tmp_path / "samples.npz"
    run_ = Sampling(common, out, *RUN, "--url", served)
    run_.wait_parts(1)
    run_.kill()
    output = Sampling(common, out, *RUN, "--local").end()
    assert out.read_bytes() == in_process.read_bytes(), output


@pytest.mark.process
def test_service_and_worker_that_die_and_come_back_are_waited_for(
    settings: Settings, tmp_path: Path, in_process: Path
) -> None:
    out = tmp_path / "samples.npz"
    with ExitStack() as stack:
        worker, first = WorkerProcess(settings, tmp_path, ADM_THREADS="1"), ExitStack()
        stack.callback(worker.end)
        worker.wait_ready()
        address, process, _ = first.enter_context(running_service(settings))
        run_ = Sampling(settings, out, *RUN, "--url", address)
        run_.wait_parts(1)
        process.kill()
        worker.kill()
        first.close()
        stack.enter_context(running_service(settings, ADM_PORT=str(urlsplit(address).port)))
        again = WorkerProcess(settings, tmp_path, ADM_THREADS="1")
        stack.callback(again.end)
        output = run_.end()
        assert out.read_bytes() == in_process.read_bytes(), output


@pytest.mark.process
def test_run_killed_while_its_incomplete_chunk_is_a_job_may_be_extended(
    settings: Settings, address: str, tmp_path: Path
) -> None:
    out = tmp_path / "samples.npz"
    with ExitStack() as stack:
        worker = WorkerProcess(settings, tmp_path, ADM_THREADS="1")
        stack.callback(worker.end)
        worker.wait_ready()
        worker.kill()
        asked = ("--count", "5", "--classes", "0", "--no-upsample", "--steps", "3")
        first = Sampling(settings, out, *asked, "--url", address)
        eventually(lambda: len(jobs_at(address)) == 1, "five images are a job that nobody works on")
        first.kill()
        again = WorkerProcess(settings, tmp_path, ADM_THREADS="1")
        stack.callback(again.end)
        sampled(out, address, count=20, classes="0", steps=3)
    assert np.load(out)["arr_0"].shape == (20, 8, 8, 3)


@pytest.mark.process
def test_queue_that_is_full_is_waited_for(common: Settings, tmp_path: Path) -> None:
    with running_service(common, ADM_QUEUE_LIMIT_SECONDS="0.001") as (address, _, lines):
        sampled(tmp_path / "samples.npz", address, window=64, steps=30)
    assert any('"status": 503' in line for line in lines)  # all lines have been read once the service has ended


def test_run_whose_pipeline_has_no_worker_any_more_waits_and_says_so(
    address: str, settings: Settings, redis_server: RedisServer, tmp_path: Path
) -> None:
    screen = io.StringIO()
    options = RunOptions(tmp_path / "samples.npz", "demo", 40, upsample=False)
    with toy(ToyWorker, redis_server, settings):
        pass
    ended = in_background(
        lambda: run(options, Remote(address, 32), Console(file=screen, force_terminal=True, width=150))
    )
    eventually(lambda: "waiting: no worker serves the pipeline" in screen.getvalue(), "the screen says so")
    assert not ended
    with toy(FailingWorker, redis_server, settings):
        eventually(lambda: ended, "the run ends")


def test_window_rounded_up_to_jobs_bounds_what_the_service_has_and_all_of_it_is_of_low_priority(
    address: str, settings: Settings, redis_server: RedisServer, tmp_path: Path
) -> None:
    with toy(ToyWorker, redis_server, settings) as worker:
        worker.hold()
        ended = in_background(lambda: sampled(tmp_path / "samples.npz", address, window=33, count=200))
        eventually(lambda: len(jobs_at(address)) == 3, "the window is full")
        jobs = jobs_at(address)
        worker.release()
        eventually(lambda: ended, "the run ends")
    assert len(jobs) == 3
    assert all(job["request"]["priority"] == "low" for job in jobs)  # type: ignore[index]  # JSON


def test_job_that_fails_repeatedly_ends_the_run_and_is_named(
    address: str, settings: Settings, redis_server: RedisServer, tmp_path: Path
) -> None:
    with toy(FailingWorker, redis_server, settings), pytest.raises(BulkError) as caught:
        sampled(tmp_path / "samples.npz", address)
    assert "job i-" in str(caught.value)
    assert "tried 3 times: the engine could not compute this job's images (class " in str(caught.value)


def test_images_that_are_not_what_was_asked_for_are_not_kept(
    address: str, settings: Settings, redis_server: RedisServer, tmp_path: Path
) -> None:
    with toy(ToyWorker, redis_server, settings), pytest.raises(BulkError, match="did not arrive whole"):
        sampled(tmp_path / "samples.npz", address)  # the toy's have 2x2 pixels
    assert list((tmp_path / "samples.npz.parts").iterdir()) == []


def test_job_that_somebody_deleted_is_made_again(
    served: str, common: Settings, tmp_path: Path, in_process: Path
) -> None:
    out = tmp_path / "samples.npz"
    run_ = Sampling(common, out, *RUN, "--url", served)
    (job, *_) = eventually(lambda: jobs_at(served), "a job is queued")
    httpx2.delete(f"{served}/v1/jobs/{job['id']}", timeout=60)
    output = run_.end()
    assert out.read_bytes() == in_process.read_bytes(), output


def test_pipeline_that_the_service_does_not_know_is_refused_with_those_there_are(
    address: str, settings: Settings, redis_server: RedisServer, tmp_path: Path
) -> None:
    with (
        toy(ToyWorker, redis_server, settings),
        pytest.raises(BulkError, match=r"--model: unknown pipeline 'unicorn'; there are: demo, demo-uncond"),
    ):
        sampled(tmp_path / "samples.npz", address, model="unicorn")
