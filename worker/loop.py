"""The worker's loop: takes jobs, steps the engine, stores what is finished, and ends each job exactly once."""

import io
import time
from collections.abc import Mapping, Sequence
from functools import cache

import structlog
import torch
from PIL import Image
from torch import Tensor

from diffusion.solvers import ENCODE
from engine.laps import lap_on
from engine.memory import BATCHES_IN_FLIGHT
from engine.pipeline import BASE
from engine.sampling import UnknownOfferError
from engine.scheduler import Priority
from engine.steps import Finished, NotFiniteError, StepReport
from jobs.away import is_away
from jobs.errors import FailureKind, RefusedError, UnavailableError
from jobs.events import Preview
from jobs.files import FileStore
from jobs.images import ImageStore
from jobs.job import ImageRecord, Usage
from jobs.settings import Settings
from worker.checkpoints import Checkpoints
from worker.filing import Filing
from worker.held import Held
from worker.inbox import Cancel, Claim, Inbox, Submit
from worker.job_run import JobRun
from worker.pacing import patience
from worker.plans import plan_job, top_classes
from worker.renewing import Renewing
from worker.stopping import Stopping
from worker.storing import UnstorableError
from worker.taking import WouldRun

log = structlog.get_logger("worker.loop")

IDLE_WAIT_SECONDS = 1.0
STORE_WAIT_SECONDS = 0.02  # for an image, where nothing else is to be done but to look for jobs and tell of life
PAUSE_SECONDS = 5.0  # without taking jobs, after the store or the device's memory failed one
LAST_WRITES_SECONDS = 5.0  # to the store, when the drain time is up: some seconds later a supervisor kills
LOOK_SECONDS = 0.005  # while the device is at work: whether it is through sooner than expected
QUEUE_DEPTH = 2  # images taken, in batches: so that both stages find full batches
QUEUE_DEPTH_AT_MOST = BATCHES_IN_FLIGHT  # with jobs that would run at once, before those that are there already


class Worker:
    """One engine and one inbox, driven by one thread; others encode and store images and extend leases for it."""

    def __init__(self, held: Held, inbox: Inbox, store: ImageStore, files: FileStore, settings: Settings) -> None:
        self._held, self._inbox, self._settings = held, inbox, settings
        self._engine, self._files = held.engine, files
        numerics, seconds = held.info.numerics, settings.checkpoint_seconds
        self._checkpoints = Checkpoints(held.engine, inbox, store, numerics, seconds)
        self._filing = Filing(store, held.pipelines, numerics)
        self._runs: dict[str, JobRun] = {}
        self._renewing = Renewing(inbox.extend, settings.lease_seconds)
        self._next_heartbeat = self._takes_nothing_until = self._next_step_at = 0.0

    def run(self, stopping: Stopping) -> None:
        """Serve until stopping is set; then take nothing new, finish what fits the drain time, give the rest back."""
        try:
            with self._renewing:
                self._serve(stopping)
        finally:
            self._filing.close()

    def _serve(self, stopping: Stopping) -> None:
        while not stopping.is_set():
            self._take_turn(accept=True)
            self._linger(stopping)
        seconds = self._settings.drain_seconds
        if self._runs:
            log.info("draining", jobs=len(self._runs), seconds=seconds)
        while self._runs and time.monotonic() < stopping.asked_at + seconds:
            self._take_turn(accept=False)
        self._give_back_all()

    def _take_turn(self, *, accept: bool) -> None:
        self._heartbeat_if_due()
        self._read_inbox(accept=accept)
        is_alone = any(run.claim.alone for run in self._runs.values())  # then its last report is evidence (jobs.deaths)
        report = self._engine.turn(ahead=not is_alone)
        self._next_step_at = time.monotonic() + patience(self._engine.seconds_ahead, self._engine.host_seconds)
        if report is not None:
            self._apply(report)
        self._settle(0.0 if self._engine.busy else STORE_WAIT_SECONDS)

    def _linger(self, stopping: Stopping) -> None:
        """Keep the next step open to whoever comes, as long as the device has enough to do without it."""
        while (
            self._engine.seconds_ahead and not stopping.is_set() and (left := self._next_step_at - time.monotonic()) > 0
        ):
            stopping.wait(min(left, LOOK_SECONDS))

    def _give_back_all(self) -> None:
        """Let others go on with what is here, from where it stands."""
        written_by = time.monotonic() + LAST_WRITES_SECONDS
        while any(run.in_hand for run in self._runs.values()) and time.monotonic() < written_by:
            self._settle(STORE_WAIT_SECONDS)  # a job with an image between engine and store would start over
        self._checkpoints.write_last(self._runs.values(), written_by)
        for run in reversed(list(self._runs.values())):  # each to the front: the first is to be the first again
            self._forget(run)
            self._inbox.give_back(run.claim)

    def _read_inbox(self, *, accept: bool) -> None:
        wait_seconds = 0.0 if self._runs or not accept else IDLE_WAIT_SECONDS  # the store away or not: no spinning
        takes = accept and time.monotonic() >= self._takes_nothing_until
        room = self._room(QUEUE_DEPTH) if takes else 0
        spare = self._room(QUEUE_DEPTH_AT_MOST) if takes else 0
        for command in self._inbox.poll(room=room, spare=spare, would_run=self._newcomers(), wait_seconds=wait_seconds):
            match command:
                case Submit(claim):
                    self._submit(claim)
                case Cancel(job_id):
                    self._drop(job_id)

    def _room(self, depth: int) -> int:
        return max(0, depth * self._engine.max_rows - self._engine.rows_in_flight)

    def _newcomers(self) -> WouldRun:
        """Tells whether a job would get its steps at once, though there may be more here than fits a batch."""
        scheduler = self._engine.scheduler
        bar = cache(scheduler.slack_of_newcomers)  # few polls look beyond the queues' heads

        def would_run(model: str, priority: Priority, work: Mapping[str, int]) -> bool:
            pipeline = self._held.pipelines[model]
            steps = [(pipeline.stage_key(stage), row_steps) for stage, row_steps in work.items()]
            is_offered = all(stage in self._engine.stages for stage, _ in steps)  # else it fails when its turn comes
            return is_offered and scheduler.slack(steps, priority) < bar()

        return would_run

    def _submit(self, claim: Claim) -> None:
        if stale := self._runs.get(claim.job_id):
            self._forget(stale)  # its lease ended while Redis was away, and no heartbeat has told us yet
        # The service has checked all this, but what lies in Redis may have come by another way.
        try:
            plan = plan_job(claim.job_id, claim.request, self._held.pipelines, self._picture)
            for image in plan.frames:
                self._engine.check(image)
            resumed = self._checkpoints.enter(claim, plan)
        except UnknownOfferError as error:
            self._engine.abort(claim.job_id)
            self._inbox.fail(claim, FailureKind.NOT_OFFERED, str(error), retry=False)
        except RefusedError as error:
            self._inbox.fail(claim, FailureKind.FILE_GONE, str(error), retry=False)
        except torch.AcceleratorError:
            raise  # as in the engine: the device is lost, and the process with it
        except Exception as error:  # noqa: BLE001 - whatever a job breaks must stay its own
            self._engine.abort(claim.job_id)
            if isinstance(error, UnavailableError | torch.OutOfMemoryError) or is_away(error):
                self._put_back(claim, error)
                return
            log.error("submit_failed", job_id=claim.job_id, error=f"{type(error).__name__}: {error}")
            detail = "the worker could not prepare this job's images"
            self._inbox.fail(claim, FailureKind.STEP_FAILED, detail, retry=True)
        else:
            self._runs[claim.job_id] = JobRun(claim, plan, resumed)
            if plan.pictures:
                self._classify(claim, plan.pictures)

    def _picture(self, file_id: str) -> Image.Image:
        self._heartbeat_if_due()  # a job may bring many large ones
        return Image.open(io.BytesIO(self._files.png(file_id)), formats=["PNG"]).convert("RGB")

    def _classify(self, claim: Claim, pictures: Sequence[Tensor]) -> None:
        """Answer a job that asks for the classifier's opinion alone: less than a step of the engine."""
        pipeline = self._held.pipelines[claim.request.model]
        stage = self._engine.stages[pipeline.stage_key(BASE)]
        lap = lap_on(stage.device)
        try:
            answers = stage.classify(torch.stack(list(pictures)))
            lap.end()
            seconds = lap.wait()
        except torch.AcceleratorError:
            raise  # as in the engine: the device is lost, and the process with it
        except Exception as error:  # noqa: BLE001 - whatever these pictures break must stay their job's
            self._blame(claim.job_id, error, "the classifier could not be asked about this job's images")
            return
        usage = Usage(steps=len(pictures), device_seconds=round(seconds, 4))
        self._forget(self._runs[claim.job_id])
        results = {"scores": [top_classes(each, pipeline.stack.class_names) for each in answers]}
        self._inbox.complete(claim, [], usage, self._held.info.numerics, results)

    def _apply(self, report: StepReport) -> None:
        stage, rows, seconds = self._engine.stages[report.stage].name, report.num_rows, report.seconds
        if report.lowered:
            log.warning("out_of_memory", stage=stage, rows=rows, row_shapes_left=report.lowered)
        if report.is_whole:
            self._engine.costs.note(report.stage, report.row_shape, seconds)
        self._held.metrics.stepped(stage, rows, report.row_shape, seconds, self._engine.rows_in_flight)
        touched: dict[str, JobRun] = {}
        for trajectory in report.moved:
            run = self._runs[trajectory.request.job_id]
            run.moved(trajectory, stage, seconds / rows)
            touched[trajectory.request.job_id] = run
        for job_id, error in report.failed.items():
            self._blame(job_id, error, "the engine could not compute this job's images")
        self._filing.show(report.previews, stage, self._runs)
        for finished in report.finished:
            if finished.request.plans[-1].sampler == ENCODE:
                self._go_on_from(finished)
            else:
                self._hand_over(finished)
        here = [run for job_id, run in touched.items() if job_id in self._runs and not run.is_computed]
        self._inbox.progress(*((run.claim, run.progress()) for run in here))
        for run in here:
            self._checkpoints.write_if_due(run)

    def _go_on_from(self, finished: Finished) -> None:
        if (run := self._runs.get(finished.request.job_id)) is None:
            return
        try:
            for frame in run.encoded(finished):
                self._engine.add(frame)
        except torch.AcceleratorError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a job's frames break must stay its own
            self._blame(run.claim.job_id, error, "the worker could not prepare this job's frames")

    def _hand_over(self, finished: Finished) -> None:
        if (run := self._runs.get(finished.request.job_id)) is None:
            return  # its job failed or was dropped in this very step
        run.left(finished)
        while self._filing.is_full:
            self._heartbeat_if_due()  # a store that is slow to answer must not cost the leases
            self._settle(STORE_WAIT_SECONDS)
        self._filing.store(run, finished)

    def _settle(self, wait_seconds: float) -> None:
        """Tell of what was encoded and stored meanwhile; waits for it where there is more in hand."""
        for run, outcome in self._filing.results(wait_seconds):
            match outcome:
                case Preview():
                    self._inbox.preview(run.claim, outcome)
                case ImageRecord():
                    self._publish(run, outcome)
                case UnavailableError():
                    self._put_back(run.claim, outcome)
                case UnstorableError():
                    log.error("unstorable", job_id=run.claim.job_id, error=str(outcome))
                    detail = "the store takes other images, but not this job's"
                    self._fail(run.claim.job_id, FailureKind.STORE_FAILED, detail, retry=True)

    def _publish(self, run: JobRun, image: ImageRecord) -> None:
        if not run.stored(image):
            if not self._inbox.image_ready(run.claim, image):
                self._forget(run)
            return
        self._forget(run)
        images = sorted(run.images, key=lambda i: i.index)
        if self._inbox.complete(run.claim, images, run.usage, self._held.info.numerics, run.results):
            self._checkpoints.ended(run)

    def _put_back(self, claim: Claim, error: Exception) -> None:
        """No fault of the job's: it starts over, at no cost to it, when the store or memory is back, or elsewhere."""
        what = "out_of_memory" if isinstance(error, torch.OutOfMemoryError) else "store_away"
        log.error(what, job_id=claim.job_id, error=str(error))
        self._takes_nothing_until = time.monotonic() + PAUSE_SECONDS
        if run := self._runs.get(claim.job_id):
            self._forget(run)
        self._inbox.give_back(claim)

    def _blame(self, job_id: str, error: Exception, detail: str) -> None:
        """What could not be computed goes back where memory ran out; else it fails, or is tried once more."""
        if isinstance(error, torch.OutOfMemoryError):
            self._put_back(self._runs[job_id].claim, error)
            return
        log.error("step_failed", job_id=job_id, error=f"{type(error).__name__}: {error}")
        # The same numbers would overflow again: only what may pass by itself is worth another try.
        self._fail(job_id, FailureKind.STEP_FAILED, detail, retry=not isinstance(error, NotFiniteError))

    def _fail(self, job_id: str, kind: FailureKind, detail: str, *, retry: bool) -> None:
        run = self._runs[job_id]
        self._forget(run)
        self._inbox.fail(run.claim, kind, detail, retry=retry)

    def _drop(self, job_id: str) -> None:
        """Take a job out of the batch that was cancelled, or that another worker holds by now."""
        if run := self._runs.get(job_id):
            self._forget(run)
            if self._inbox.cancelled(run.claim):  # refused where the claim was lost
                self._checkpoints.ended(run)

    def _forget(self, run: JobRun) -> None:
        del self._runs[run.claim.job_id]
        run.forgotten = True
        self._engine.abort(run.claim.job_id)

    def _heartbeat_if_due(self) -> None:
        if time.monotonic() < self._next_heartbeat:
            return
        self._renewing.hear()
        self._next_heartbeat = time.monotonic() + self._settings.heartbeat_seconds
        info, metrics = self._held.tell()
        for job_id in self._inbox.heartbeat(info, metrics):
            self._drop(job_id)
