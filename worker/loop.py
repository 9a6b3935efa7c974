"""The worker's loop: steps the engine, and hands to other threads all that waits for Redis, the store or a file."""

import time
from collections.abc import Mapping

import structlog

from diffusion.solvers import ENCODE
from engine.memory import BATCHES_IN_FLIGHT
from engine.scheduler import Priority
from engine.steps import Finished, StepReport
from jobs.contract.errors import FailureKind, UnavailableError
from jobs.contract.job import ImageRecord
from jobs.queue.events import Preview
from jobs.settings import Settings
from jobs.storage.files import FileStore
from jobs.storage.images import ImageStore
from worker.auditing import Auditing
from worker.checkpoints import Checkpoints
from worker.entering import Entering
from worker.errands import Errands
from worker.filing import Filing, Outcome
from worker.held import Held
from worker.inbox import Cancel, Inbox, Submit
from worker.job_run import JobRun
from worker.pacing import patience
from worker.queue_thread import QueueThread
from worker.renewing import HUNG_STATUS, Renewing, end_process
from worker.runs import Runs
from worker.stopping import Stopping
from worker.storing import UnstorableError
from worker.taking import WouldRun

log = structlog.get_logger("worker.loop")

IDLE_WAIT_SECONDS = 1.0  # for a job, where there is none
LOOK_SECONDS = 0.25  # at whether to stop, while there is no job
OUTCOME_WAIT_SECONDS = 0.02  # for other threads, where the engine has nothing to do
JOIN_SECONDS = 0.005  # for the answer to a look for jobs, so that they join the step to come; then it is taken without
LAST_WRITES_SECONDS = 5.0  # to the store, when the drain time is up: some seconds later a supervisor kills
REPORT_SECONDS = 5.0  # for Redis to take the report of a job that runs alone, until its steps go on without
LINGER_SECONDS = 0.005  # while the device is at work: whether it is through sooner than expected
QUEUE_DEPTH = 2  # images taken, in batches: so that both stages find full batches
QUEUE_DEPTH_AT_MOST = BATCHES_IN_FLIGHT  # with jobs that would run at once, before those that are there already


class Worker:
    """One engine and one inbox. One thread drives the engine; it waits for the device and for nothing else.

    There is one limit: once 64 images wait for the store (`filing.MOST_IN_HAND`), the next one holds up all steps until
    one of them is stored or given up. With a silent bucket that takes two calls at most, 20 s.

    Others talk to Redis (`QueueThread`), fetch what jobs start from (`Entering`), encode and store images (`Filing`),
    write checkpoints (`Checkpoints`) and watch the loop (`Renewing`). What follows their calls runs here, in `Errands`.
    """

    def __init__(self, held: Held, inbox: Inbox, store: ImageStore, files: FileStore, settings: Settings) -> None:
        self._held, self._engine, self._settings = held, held.engine, settings
        numerics, errands, self._spans = held.numerics, Errands(), inbox.spans
        self._errands, self._queue = errands, QueueThread(inbox, errands)
        self._checkpoints = Checkpoints(
            held.engine, inbox, self._queue, errands, store, numerics, settings.checkpoint_seconds
        )
        self._runs = Runs(held.engine, inbox, self._queue, self._checkpoints, numerics)
        self._entering = Entering(held, self._runs, self._checkpoints, files, errands, self._spans)
        self._filing = Filing(store, held.pipelines, numerics, errands, self._spans, self._filed)
        self._renewing = Renewing(inbox.extend, settings.lease_seconds, settings.step_timeout_seconds, self._hangs)
        self._auditing = Auditing(held.engine, held.audit, numerics, held.metrics)
        self._next_heartbeat = self._next_step_at = 0.0
        self._gives_back = False  # all that is here, and what is claimed from now on

    def run(self, stopping: Stopping) -> None:
        """Serve until stopping is set; then take nothing new, finish what fits the drain time, give the rest back."""
        with self._renewing:
            try:
                self._serve(stopping)
            finally:
                for each in (self._queue, self._entering, self._checkpoints, self._filing):
                    each.close()

    def _serve(self, stopping: Stopping) -> None:
        while not stopping.is_set():
            self._take_turn(accept=True)
            self._linger(stopping)
        seconds = self._settings.drain_seconds
        if self._holds_jobs:
            log.info("draining", jobs=len(self._runs) + len(self._entering), seconds=seconds)
        while self._holds_jobs and time.monotonic() < stopping.asked_at + seconds:
            self._take_turn(accept=False)
        self._give_back_all()

    @property
    def _holds_jobs(self) -> bool:
        return bool(self._runs or self._entering)

    def _take_turn(self, *, accept: bool) -> None:
        self._renewing.hear()
        self._heartbeat_if_due()
        if self._read_inbox(accept=accept) and self._engine.busy:
            self._await_newcomers()
        # what a job that runs alone reported last is evidence (jobs.queue.deaths)
        is_alone = any(run.claim.alone for run in self._runs.all)
        report = self._engine.turn(ahead=not is_alone)
        self._next_step_at = time.monotonic() + patience(self._engine.seconds_ahead, self._engine.host_seconds)
        if report is not None:
            self._apply(report)
        if is_alone:
            self._await_report()
        self._errands.settle(self._wait_seconds)
        if accept and not self._holds_jobs and not self._engine.busy:
            self._auditing.run_if_due()

    @property
    def _wait_seconds(self) -> float:
        if self._engine.busy:
            return 0.0
        return OUTCOME_WAIT_SECONDS if self._holds_jobs else LOOK_SECONDS

    def _linger(self, stopping: Stopping) -> None:
        """Keep the next step open to whoever comes, as long as the device has enough to do without it."""
        while (
            self._engine.seconds_ahead and not stopping.is_set() and (left := self._next_step_at - time.monotonic()) > 0
        ):
            self._renewing.hear()
            self._errands.settle(min(left, LINGER_SECONDS))

    def _give_back_all(self) -> None:
        """Let others go on with what is here, from where it stands."""
        self._gives_back = True
        written_by = time.monotonic() + LAST_WRITES_SECONDS
        while any(run.in_hand for run in self._runs.all) and time.monotonic() < written_by:
            self._errands.settle(OUTCOME_WAIT_SECONDS)  # a job with an image between engine and store would start over
        self._checkpoints.write_last(self._runs.all, written_by)
        self._entering.give_back_all()
        self._runs.give_back_all()
        while self._queue.is_busy:  # for as long as the inbox waits for Redis; the last look may have claimed jobs
            self._renewing.hear()
            self._errands.settle(OUTCOME_WAIT_SECONDS)

    def _await_newcomers(self) -> None:
        until = time.monotonic() + JOIN_SECONDS
        while self._queue.is_polling and (left := until - time.monotonic()) > 0:
            self._errands.settle(left)

    def _await_report(self) -> None:
        """Wait until the last step of a job that runs alone is on record: the next one may end the process."""
        until = time.monotonic() + REPORT_SECONDS
        while self._queue.is_reporting and (left := until - time.monotonic()) > 0:
            self._renewing.hear()
            self._errands.settle(min(left, LINGER_SECONDS))

    def _read_inbox(self, *, accept: bool) -> bool:
        """Look for jobs and cancellations; False where the last look is not over, for Redis is slow."""
        if self._queue.is_polling:
            return False
        is_idle = not self._holds_jobs
        takes = accept and self._runs.may_take_more
        self._queue.poll(
            room=self._room(QUEUE_DEPTH) if takes else 0,
            spare=self._room(QUEUE_DEPTH_AT_MOST) if takes else 0,
            would_run=self._newcomers(),
            wait_seconds=IDLE_WAIT_SECONDS if is_idle else 0.0,  # the store away or not: no spinning
            then=self._obey,
        )
        return True

    def _obey(self, command: Submit | Cancel) -> None:
        match command:
            case Submit(claim) if self._gives_back:
                self._runs.give_back(claim)
            case Submit(claim):
                self._entering.submit(claim)
            case Cancel(job_id):
                self._drop(job_id)

    def _room(self, depth: int) -> int:
        return max(0, depth * self._engine.max_rows - self._engine.rows_in_flight - self._entering.num_rows)

    def _newcomers(self) -> WouldRun:
        """Tells, on any thread, whether a job would get its steps at once, though more than a batch is here."""
        scheduler, stages, pipelines = self._engine.scheduler, self._engine.stages, self._held.pipelines
        bar = scheduler.slack_of_newcomers()  # here, where nobody changes the scheduler meanwhile

        def would_run(model: str, priority: Priority, work: Mapping[str, int]) -> bool:
            steps = [(pipelines[model].stage_key(stage), row_steps) for stage, row_steps in work.items()]
            is_offered = all(stage in stages for stage, _ in steps)  # else it fails when its turn comes
            return is_offered and scheduler.slack(steps, priority) < bar

        return would_run

    def _apply(self, report: StepReport) -> None:
        stage, rows, seconds = self._engine.stages[report.stage].name, report.num_rows, report.seconds
        if report.lowered:
            log.warning("out_of_memory", stage=stage, rows=rows, row_shapes_left=report.lowered)
        if report.is_whole:
            self._engine.costs.note(report.stage, report.row_shape, seconds)
        self._auditing.note(report)
        self._held.metrics.stepped(stage, rows, report.row_shape, seconds, self._engine.rows_in_flight)
        touched: dict[str, JobRun] = {}
        for trajectory in report.moved:
            run = self._runs.of(trajectory.request.job_id)
            assert run is not None
            run.moved(trajectory, stage, seconds / rows)
            touched[trajectory.request.job_id] = run
        if self._spans.are_on:
            self._spans.stepped(stage, report, {job_id: run.claim for job_id, run in touched.items()})
        for job_id, error in report.failed.items():
            self._runs.blame(job_id, error, "the engine could not compute this job's images")
        shown = {key: (run, pixels) for key, pixels in report.previews.items() if (run := self._runs.of(key[0]))}
        self._filing.show(shown, stage)
        for finished in report.finished:
            if finished.request.plans[-1].sampler == ENCODE:
                self._entering.go_on_from(finished)
            else:
                self._hand_over(finished)
        here = [run for run in touched.values() if self._runs.has(run) and not run.is_computed]
        self._queue.progress([(run.claim, run.progress()) for run in here])
        for run in here:
            self._checkpoints.write_if_due(run)

    def _hand_over(self, finished: Finished) -> None:
        if (run := self._runs.of(finished.request.job_id)) is None:
            return  # its job failed or was dropped in this very step
        run.left(finished)
        while self._filing.is_full and not run.forgotten:
            self._renewing.hear()
            self._heartbeat_if_due()  # a store that is slow to answer must not cost the leases
            self._errands.settle(OUTCOME_WAIT_SECONDS)
        if not run.forgotten:
            self._filing.store(run, finished)

    def _filed(self, run: JobRun, outcome: Outcome) -> None:
        """Publish what was encoded and stored of a job that is in flight."""
        match outcome:
            case Preview():
                self._queue.preview(run.claim, outcome)
            case ImageRecord():
                self._runs.stored(run, outcome)
            case UnavailableError():
                self._runs.put_back(run.claim, outcome)
            case UnstorableError():
                log.error("unstorable", **run.claim.ids, error=str(outcome))
                detail = "the store takes other images, but not this job's"
                self._runs.fail(run, FailureKind.STORE_FAILED, detail, retry=True)

    def _drop(self, job_id: str) -> None:
        """Take a job out, wherever it stands, that was cancelled, or that another worker holds by now."""
        if claim := self._entering.forget(job_id):
            self._runs.cancelled(claim)
        elif run := self._runs.of(job_id):
            self._runs.drop(run)

    def _heartbeat_if_due(self) -> None:
        if time.monotonic() < self._next_heartbeat:
            return
        self._next_heartbeat = time.monotonic() + self._settings.heartbeat_seconds
        self._held.metrics.in_filing.set(self._filing.num_in_hand)
        self._queue.heartbeat(*self._held.tell(), self._drop)

    def _hangs(self, silent_seconds: float) -> None:
        """End the process, on another thread: no step can be interrupted, and its jobs are to have another worker."""
        stage, rows = self._engine.launched
        log.critical("step_hangs", stage=stage, rows=rows, silent_seconds=round(silent_seconds), status=HUNG_STATUS)
        end_process()
