"""A worker that launches the next step before it retires the previous one, as on a GPU."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Event

import pytest
from redis import Redis
from structlog.testing import capture_logs

from engine.engine import Engine
from engine.step_times import HostTimer
from engine.steps import StepReport
from jobs.contract.job import Job, JobStatus
from jobs.contract.worker_deaths import DEATHS_TOGETHER
from jobs.queue.events import ProgressPublisher, ProgressReport
from jobs.settings import Settings
from jobs.storage.files import FileStore
from tests.waiting import eventually
from tests.worker.conftest import Bench, OpenInbox
from tests.worker.programs import Shift
from worker import loop
from worker.loaded_pipelines import LoadedPipelines
from worker.loop import Worker
from worker.warmup import measure_steps

pytestmark = pytest.mark.slow

JOBS: list[dict[str, object]] = [
    {"steps": 4, "n": 3, "upsample": {"steps": 2}},
    {"steps": 3, "n": 2, "sampler": "heun", "guidance_scale": 0, "upsample": False, "previews": True},
    {"steps": 1, "upsample": False},
    {"steps": 9, "sampler": "ddpm", "upsample": {"steps": 1}, "priority": "high"},
]


Serve = Callable[..., Shift]


@pytest.fixture
def serve(
    loaded: LoadedPipelines, open_inbox: OpenInbox, bench: Bench, redis: Redis, settings: Settings
) -> Iterator[Serve]:
    shifts: list[Shift] = []

    def serve_(depth: int, **changes: object) -> Shift:
        engine = Engine(loaded.engine.stages, loaded.engine.max_rows, depth)
        measure_steps(engine)
        changed = settings.model_copy(update={"heartbeat_seconds": 0.1, **changes})
        files = FileStore(redis, settings, bench.images.objects)
        shifts.append(Shift(Worker(replace(loaded, engine=engine), open_inbox(), bench.images, files, changed)))
        return shifts[-1]

    yield serve_
    for each in shifts:
        each.end()


def wait_all(bench: Bench, job_ids: list[str]) -> list[Job]:
    eventually(lambda: all(bench.queue.get(each).status.is_final for each in job_ids), "all end")
    return [bench.queue.get(each) for each in job_ids]


def outcome(job: Job) -> tuple[list[str], int]:
    assert job.status is JobStatus.COMPLETED, job.error
    return [image.sha256 for image in sorted(job.images, key=lambda image: image.index)], job.usage.steps


def test_jobs_have_the_bytes_and_the_steps_that_they_have_otherwise(bench: Bench, serve: Serve) -> None:
    outcomes = []
    for depth in (1, 2):
        shift = serve(depth)
        outcomes.append([outcome(job) for job in wait_all(bench, [bench.submit(**body) for body in JOBS])])
        shift.end()
    assert outcomes[0] == outcomes[1]


def note_steps_ahead(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record for each retired step whether the device has another one."""
    ahead: list[bool] = []
    iterate = Engine.iterate

    def noting(engine: Engine, **options: bool) -> StepReport | None:
        if (report := iterate(engine, **options)) is not None:
            ahead.append(engine.seconds_ahead > 0)
        return report

    monkeypatch.setattr(Engine, "iterate", noting)  # to look at the engine between two iterations of a worker
    monkeypatch.setattr(HostTimer, "is_done", False)  # as a device that runs asynchronously, which a CPU does not
    return ahead


def test_device_has_the_next_step_while_its_worker_reports_one(
    bench: Bench, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last step there is no next one."""
    ahead = note_steps_ahead(monkeypatch)
    job_id = bench.submit(steps=6, upsample=False)
    serve(2)
    (job,) = wait_all(bench, [job_id])
    assert outcome(job)[1] == 6
    assert ahead == [True] * 5 + [False]


def test_each_step_of_a_job_that_runs_alone_is_reported_before_the_device_has_the_next(
    bench: Bench, serve: Serve, open_inbox: OpenInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[int] = []
    ahead = note_steps_ahead(monkeypatch)
    publish = ProgressPublisher.publish

    def note(publisher: ProgressPublisher, reports: Sequence[ProgressReport]) -> dict[str, Exception]:
        reported.extend(each.progress.step for each in reports)
        return publish(publisher, reports)

    monkeypatch.setattr(ProgressPublisher, "publish", note)  # the real one, with a record of its calls
    job_id = bench.submit(steps=6, upsample=False)
    for _ in range(DEATHS_TOGETHER):
        bench.claim(open_inbox("cpu-0"))
    serve(2)
    (job,) = wait_all(bench, [job_id])
    assert outcome(job)[1] == 6
    assert ahead == [False] * 6
    assert reported == [1, 2, 3, 4, 5], "the end of the job reports the last"


@pytest.mark.parametrize("num_reported", [0, 1])
def test_job_that_comes_while_the_device_is_at_a_step_has_a_place_in_the_next(
    bench: Bench, serve: Serve, monkeypatch: pytest.MonkeyPatch, num_reported: int
) -> None:
    """On a device that was idle before, that is the second step: nothing has been reported yet."""
    reported: list[set[str]] = []  # the jobs that moved, by steps
    iterations: list[StepReport | None] = []
    iterate = Engine.iterate

    def iterate_and_note(engine: Engine, *, ahead: bool = True) -> StepReport | None:
        report = iterate(engine, ahead=ahead)
        if report is not None:
            reported.append({each.request.job_id for each in report.moved})
        if engine.busy:
            iterations.append(report)
        return report

    def is_done(timer: HostTimer) -> bool:
        return late_is_there.is_set() or len(iterations) != 1 + num_reported

    late_is_there = Event()
    monkeypatch.setattr(loop, "JOIN_SECONDS", 60.0)  # for Redis to answer a look for jobs, on a busy machine too
    # the real engine, on a device that runs asynchronously as long as the test says
    monkeypatch.setattr(Engine, "iterate", iterate_and_note)
    monkeypatch.setattr(HostTimer, "is_done", property(is_done))
    monkeypatch.setattr(HostTimer, "wait", lambda timer: 600.0)
    early = bench.submit(steps=4, upsample=False)
    serve(2)
    eventually(lambda: len(iterations) == 1 + num_reported, "one step more has started than was reported")
    late = bench.submit(steps=2, upsample=False)
    late_is_there.set()
    wait_all(bench, [early, late])
    alone, both = {early}, {early, late}
    assert reported == [alone] * (1 + num_reported) + [both] * 2 + [alone] * (1 - num_reported)


def test_requeued_job_continues_from_the_last_reported_step(bench: Bench, serve: Serve) -> None:
    often = {"checkpoint_seconds": 0.01, "drain_seconds": 0}
    body: dict[str, object] = {"n": 2, "steps": 150, "sampler": "ddpm", "upsample": {"steps": 2}}
    shift = serve(2, **often)
    (undisturbed,) = wait_all(bench, [bench.submit(**body)])
    job_id = bench.submit(**body)
    eventually(lambda: bench.queue.get(job_id).progress.step > 5, "it is under way")
    shift.end()
    assert bench.status(job_id) == "queued"
    with capture_logs() as logs:
        serve(1, **often)
        (job,) = wait_all(bench, [job_id])
    assert [each["event"] for each in logs if each["event"] in ("resumed", "starts_over")] == ["resumed"]
    assert outcome(job) == outcome(undisturbed)


def test_job_that_is_cancelled_under_way_takes_nobody_along(bench: Bench, serve: Serve) -> None:
    serve(2)
    gone, stays = bench.submit(steps=1000, n=2, upsample=False), bench.submit(steps=40, upsample=False)
    eventually(lambda: bench.queue.get(gone).status is JobStatus.IN_PROGRESS, "it runs")
    bench.queue.cancel(gone)
    (job,) = wait_all(bench, [stays])
    assert outcome(job)[1] == 40
    eventually(lambda: bench.status(gone) == "cancelled", "it is gone")
