"""Checkpoints that jobs name, those in the store, and those that cannot be written."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest
import torch
from redis import Redis
from structlog.testing import capture_logs

from diffusion.tables import COLUMNS, SamplerTable
from engine.engine import Engine
from engine.pipeline import build_stages
from engine.stage import Stage
from engine.trajectory import ImageRequest, StagePlan, Trajectory
from jobs.contract.errors import FailureKind
from jobs.contract.job import CheckpointRecord, Progress
from jobs.queue.cleaner import Cleaner
from jobs.settings import Settings
from models.stack import load_stack
from tests.worker.conftest import Bench
from worker import checkpoints
from worker.attempts import Attempt
from worker.auditing import Numerics
from worker.background_calls import BackgroundCalls
from worker.checkpoints import WORTH_SECONDS, Checkpoints
from worker.claim import Claim
from worker.inbox import Inbox
from worker.job_plans import JobPlan
from worker.queue_thread import QueueThread

BASE = "demo/base"
REACHED = Progress(stage="base", step=1, steps=2, fraction=0.5)


@pytest.fixture
def cleaner(bench: Bench, redis: Redis) -> Cleaner:
    return Cleaner(redis, bench.queue.ledger, bench.images, bench.queue.files, lease_seconds=30)


def make_old(settings: Settings) -> None:
    for path in (settings.data / "images").rglob("*.*"):
        os.utime(path, (0, time.time() - 31))


def put(bench: Bench, inbox: Inbox, claim: Claim, data: bytes = b"state") -> CheckpointRecord:
    record = bench.images.put_checkpoint(claim.job_id, claim.token, "numerics", data)
    assert inbox.results.checkpointed(claim, record, REACHED)
    return record


def stored(bench: Bench) -> list[str]:
    return [each.key.rpartition("/")[2].partition(".")[0] for each in bench.images.images()]


def test_next_claim_gets_the_last_checkpoint_and_the_images_published_before(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit(n=2)
    (claim,) = bench.claim(inbox)
    assert claim.checkpoint is None
    image = bench.images.put(job_id, claim.token, 0, b"\x89PNG" + bytes(30))
    inbox.results.image_ready(claim, image)
    put(bench, inbox, claim)
    last = put(bench, inbox, claim, b"later")
    bench.queue.ledger.recover(job_id, claim.token)
    (again,) = bench.claim(inbox)
    assert (again.checkpoint, again.published) == (last, (image,))


def test_lost_claim_names_no_checkpoint(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.queue.ledger.recover(job_id, claim.token)
    record = bench.images.put_checkpoint(job_id, claim.token, "numerics", b"state")
    assert not inbox.results.checkpointed(claim, record, REACHED)
    bench.queue.delete(job_id)
    assert not inbox.results.checkpointed(claim, record, REACHED)
    assert bench.claim(inbox) == []


def test_upkeep_keeps_the_checkpoint_of_a_job_that_is_not_over_and_no_other(
    bench: Bench, inbox: Inbox, cleaner: Cleaner, settings: Settings
) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    put(bench, inbox, claim)
    last = put(bench, inbox, claim, b"later")
    bench.queue.ledger.recover(job_id, claim.token)  # and so waits again
    make_old(settings)
    assert cleaner.remove_unpublished_images() == 1
    assert stored(bench) == [last.sha256]


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_nothing_of_a_checkpoint_is_left_when_its_job_is_over(
    bench: Bench, inbox: Inbox, cleaner: Cleaner, settings: Settings, redis: Redis, end: str
) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    put(bench, inbox, claim)
    match end:
        case "completed":
            bench.finish(inbox, claim)
        case "failed":
            inbox.results.fail(claim, FailureKind.STEP_FAILED, "the step raised", retry=False)
        case _:
            bench.queue.cancel(job_id)
            inbox.results.cancelled(claim)
    assert bench.status(job_id) == end
    record = bench.queue.ledger.read(job_id)
    assert record is not None
    assert record.checkpoint is None
    make_old(settings)
    assert cleaner.remove_unpublished_images() == 1
    assert stored(bench) == (["0"] if end == "completed" else [])


def test_deleted_job_takes_its_checkpoint_along(bench: Bench, inbox: Inbox) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    put(bench, inbox, claim)
    bench.queue.delete(job_id)
    assert stored(bench) == []


def test_record_that_cannot_be_read_is_none(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit()
    redis.hset(f"rq:job:{job_id}", "adm_checkpoint", '{"sha256": 1')
    (claim,) = bench.claim(inbox)
    assert claim.checkpoint is None


@pytest.fixture(scope="module")
def stages(weights: Path) -> dict[str, Stage]:
    return build_stages([load_stack(weights / "demo")], 1)


@pytest.fixture
def engine(stages: dict[str, Stage]) -> Engine:
    return Engine(stages, 1)


def begin(bench: Bench, inbox: Inbox, engine: Engine) -> Attempt:
    """A job with an image that has taken one of its two steps."""
    bench.submit()
    (claim,) = bench.claim(inbox)
    plan = JobPlan([ImageRequest(claim.job_id, 0, 5, (StagePlan(BASE, "ddim", 2),), network_label=0)])
    engine.add(plan.images[0])
    attempt = Attempt(claim, plan)
    table = SamplerTable(torch.zeros(2, len(COLUMNS)), torch.arange(2), torch.arange(2))
    attempt.moved(Trajectory(plan.images[0], table, torch.zeros(3, 8, 8)), BASE, 0.0)
    return attempt


@pytest.fixture
def attempt(bench: Bench, inbox: Inbox, engine: Engine) -> Attempt:
    return begin(bench, inbox, engine)


class Writer:
    """Checkpoints, and a loop that waits until the other threads have finished the checkpoints' calls."""

    def __init__(self, bench: Bench, inbox: Inbox, engine: Engine, seconds: float) -> None:
        self._calls = BackgroundCalls()
        self._queue = QueueThread(inbox, self._calls)
        numerics = Numerics(lambda: {"demo": "numerics"}, lambda: None)
        self.checkpoints = Checkpoints(engine, inbox.results, self._queue, self._calls, bench.images, numerics, seconds)

    def write_if_due(self, attempt: Attempt) -> None:
        self.checkpoints.write_if_due(attempt)
        self.settle()

    def write_last(self, attempts: list[Attempt], until: float) -> None:
        self.checkpoints.write_last(attempts, until)
        self.settle()

    def settle(self) -> None:
        while self.checkpoints.is_writing or self._queue.is_busy:
            self._calls.run_callbacks(1)

    @contextmanager
    def slow_redis(self) -> Iterator[None]:
        """Inside, calls to Redis wait; the store is written to."""
        answers = Event()
        self._queue.write(answers.wait)
        try:
            yield
        finally:
            answers.set()
            self.settle()

    def settle_store(self) -> None:
        while self.checkpoints.is_writing:
            self._calls.run_callbacks(1)

    def close(self) -> None:
        self._queue.close()
        self.checkpoints.close()


OpenWriter = Callable[..., Writer]


@pytest.fixture
def checkpoints_of(bench: Bench, inbox: Inbox, engine: Engine) -> Iterator[OpenWriter]:
    writers: list[Writer] = []

    def open_(seconds: float = 60) -> Writer:
        writers.append(Writer(bench, inbox, engine, seconds))
        return writers[-1]

    yield open_
    for each in writers:
        each.close()


def test_checkpoint_is_written_after_each_interval_of_device_time_and_replaces_the_last(
    bench: Bench, attempt: Attempt, checkpoints_of: OpenWriter
) -> None:
    writer, written = checkpoints_of(), []
    for attempt.device_seconds in (59, 60, 119, 121):
        writer.write_if_due(attempt)
        written.append(None if attempt.checkpoint is None else attempt.checkpoint.sha256)
        assert stored(bench) == [each for each in written[-1:] if each]
    assert written[0] is None
    assert written[1] == written[2] != written[3]
    attempt.device_seconds = 122
    writer.write_last([attempt], math.inf)
    assert stored(bench) != written[-1:]


def test_slow_redis_does_not_fill_the_store(bench: Bench, attempt: Attempt, checkpoints_of: OpenWriter) -> None:
    """A checkpoint that the job's record does not name yet replaces none, so no further one is written beside it."""
    writer = checkpoints_of()
    with writer.slow_redis():
        for attempt.device_seconds in (60, 120, 180):
            writer.checkpoints.write_if_due(attempt)
            writer.settle_store()
        assert len(stored(bench)) == 1
    assert attempt.checkpoint is not None
    writer.write_if_due(attempt)
    assert stored(bench) == [attempt.checkpoint.sha256]


def test_job_that_advances_while_its_checkpoint_is_written_is_recorded_at_the_copied_step(
    bench: Bench, inbox: Inbox, attempt: Attempt, checkpoints_of: OpenWriter
) -> None:
    writer, attempt.device_seconds = checkpoints_of(), 60.0
    copied = attempt.progress()
    writer.checkpoints.write_if_due(attempt)
    inbox.reports.progress((attempt.claim, Progress(stage=BASE, step=2, steps=2, fraction=1.0)))
    writer.settle()
    bench.queue.ledger.recover(attempt.claim.job_id, attempt.claim.token)
    (again,) = bench.claim(inbox)
    record = bench.queue.ledger.read(again.job_id)
    assert record is not None
    assert (again.checkpoint, record.reached) == (attempt.checkpoint, copied)


def test_checkpoint_is_not_replaced_while_the_jobs_failure_is_not_yet_reported(
    bench: Bench, engine: Engine, attempt: Attempt, checkpoints_of: OpenWriter
) -> None:
    """Its images have left the engine in a step that was launched after the one that is being retired."""
    attempt.device_seconds = 60
    checkpoints_of().write_if_due(attempt)
    before, attempt.device_seconds = stored(bench), 200
    engine.abort(attempt.claim.job_id)
    checkpoints_of().write_if_due(attempt)
    checkpoints_of().write_last([attempt], math.inf)
    assert stored(bench) == before != []


def test_short_jobs_write_no_checkpoint_and_no_job_does_if_checkpoints_are_off(
    bench: Bench, attempt: Attempt, checkpoints_of: OpenWriter
) -> None:
    attempt.device_seconds = WORTH_SECONDS - 0.1
    checkpoints_of().write_last([attempt], math.inf)
    attempt.device_seconds = 1000
    checkpoints_of(0).write_last([attempt], math.inf)
    checkpoints_of(0).write_if_due(attempt)
    assert stored(bench) == []


def test_requeued_job_writes_a_checkpoint_before_a_regular_one_is_due(
    bench: Bench, attempt: Attempt, checkpoints_of: OpenWriter
) -> None:
    attempt.device_seconds = WORTH_SECONDS
    checkpoints_of().write_if_due(attempt)
    assert stored(bench) == []
    checkpoints_of().write_last([attempt], math.inf)
    assert len(stored(bench)) == 1


def test_checkpoint_of_the_most_work_is_written_first_and_none_when_time_is_up(
    bench: Bench, inbox: Inbox, engine: Engine, attempt: Attempt, checkpoints_of: OpenWriter
) -> None:
    more = begin(bench, inbox, engine)
    attempt.device_seconds, more.device_seconds = 4.0, 5.0
    checkpoints_of().write_last([attempt, more], -math.inf)
    assert stored(bench) == []
    with capture_logs() as logs:
        checkpoints_of().write_last([attempt, more], math.inf)
    assert [each["job_id"] for each in logs] == [more.claim.job_id, attempt.claim.job_id]


@pytest.mark.parametrize(("room", "written"), [(0, 1), (-1, 0)])
def test_state_as_large_as_the_limit_is_written_and_a_larger_one_is_not(
    bench: Bench,
    engine: Engine,
    attempt: Attempt,
    checkpoints_of: OpenWriter,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    written: int,
) -> None:
    attempt.device_seconds = 60
    (state,) = engine.states(attempt.claim.job_id).values()
    monkeypatch.setattr(checkpoints, "MAX_BYTES", state.x.nbytes + room)
    checkpoints_of().write_if_due(attempt)
    assert len(stored(bench)) == written


def test_too_large_a_state_and_an_unavailable_store_are_passed_over(
    bench: Bench, attempt: Attempt, checkpoints_of: OpenWriter, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt.device_seconds = 60
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "MAX_BYTES", -1)
        checkpoints_of().write_if_due(attempt)
    assert stored(bench) == []
    (settings.data / "images" / "jobs").write_text("in the way")
    attempt.device_seconds = 120
    checkpoints_of().write_if_due(attempt)
    assert attempt.checkpoint is None
    assert attempt.checkpointed_at == 120, "not at each step again"
