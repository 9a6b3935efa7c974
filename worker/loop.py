"""The worker's loop: runs the engine's steps; other threads make the calls that wait for Redis, the store or files."""

import time
from collections.abc import Callable, Mapping

import structlog

from engine.steps import Finished, StepReport
from jobs.contract.changes import PipelineChange
from jobs.contract.errors import FailureKind, UnavailableError
from jobs.contract.job import ImageRecord
from jobs.queue.events import Preview
from jobs.settings import Settings
from jobs.storage.files import FileStore
from jobs.storage.images import ImageStore
from models.memory import BATCHES_IN_FLIGHT
from vocabulary.priorities import Priority
from vocabulary.sampling import Direction
from worker.admission import Admission
from worker.attempts import Attempt, Attempts
from worker.auditing import Auditing
from worker.background_calls import BackgroundCalls
from worker.change_watch import ChangeWatch
from worker.checkpoints import Checkpoints
from worker.claim import Cancel, Submit, WouldRun
from worker.image_writer import ImageWriter, Outcome
from worker.inbox import Inbox
from worker.launch_delay import launch_delay
from worker.loaded_pipelines import LoadedPipelines
from worker.queue_thread import QueueThread
from worker.stopping import Stopping
from worker.store_retries import UnstorableError
from worker.watchdog import HUNG_STATUS, Watchdog, end_process

log = structlog.get_logger("worker.loop")

IDLE_WAIT_SECONDS = 1.0  # of a poll for jobs while the worker has none
LOOK_SECONDS = 0.25  # between two looks at the stop signal while there is no job
OUTCOME_WAIT_SECONDS = 0.02  # for other threads' results while the engine has no images
JOIN_SECONDS = 0.005  # to wait for a poll's result, so that new jobs join the next step
LAST_WRITES_SECONDS = 5.0  # for checkpoints after the drain time; a supervisor kills some seconds later
REPORT_SECONDS = 5.0  # longest wait for Redis to accept the progress of a job that runs alone
LINGER_SECONDS = 0.005  # between two looks whether a running device has finished early
QUEUE_DEPTH = 2  # batches of images that are claimed, so that both stages have full batches
QUEUE_DEPTH_AT_MOST = BATCHES_IN_FLIGHT  # for jobs that would run before those in the engine


class Worker:
    """One engine and one inbox. One thread drives the engine and waits for nothing but the device.

    There is one exception: when `image_writer.MAX_PENDING` images wait for the store, the next one stops all steps
    until one of them is stored or given up. With a bucket that does not answer, that takes two calls at most, 20 s.

    Other threads talk to Redis (`QueueThread`), fetch what jobs start from (`Admission`), encode and store images
    (`ImageWriter`), write checkpoints (`Checkpoints`) and watch the loop (`Watchdog`). The callbacks of their calls run
    on the loop's thread, in `BackgroundCalls`.
    """

    def __init__(
        self,
        loaded: LoadedPipelines,
        inbox: Inbox,
        store: ImageStore,
        files: FileStore,
        settings: Settings,
        look_for_change: Callable[[], PipelineChange | None] = lambda: None,
    ) -> None:
        self._loaded, self._engine, self._settings = loaded, loaded.engine, settings
        numerics, calls, self._spans = loaded.numerics, BackgroundCalls(), inbox.spans
        self._calls, self._queue = calls, QueueThread(inbox, calls)
        self._checkpoints = Checkpoints(
            loaded.engine, inbox.results, self._queue, calls, store, numerics, settings.checkpoint_seconds
        )
        self._attempts = Attempts(loaded.engine, inbox.results, self._queue, numerics, self._checkpoints.ended)
        self._admission = Admission(loaded, self._attempts, self._checkpoints, files, calls, self._spans)
        self._image_writer = ImageWriter(store, loaded.pipelines, numerics, calls, self._spans, self._publish)
        self._watchdog = Watchdog(inbox.extend, settings.lease_seconds, settings.step_timeout_seconds, self._hangs)
        self._auditing = Auditing(loaded.engine, loaded.audit, numerics, loaded.metrics)
        self._next_heartbeat = self._next_step_at = 0.0
        self._requeues = False  # whether all jobs are requeued, also those claimed from now on
        self._change_watch = ChangeWatch(look_for_change, calls)

    def run(self, stopping: Stopping) -> PipelineChange | None:
        """Serve until stopping is set; then claim no more jobs, finish what fits the drain time and requeue the rest.

        If a change of the pipelines is due, finish all jobs and return the change.
        """
        with self._watchdog:
            try:
                self._serve(stopping)
            finally:
                for each in (self._queue, self._admission, self._checkpoints, self._image_writer, self._change_watch):
                    each.close()
        return None if stopping.is_set() else self._change_watch.due

    def _serve(self, stopping: Stopping) -> None:
        while not stopping.is_set():
            if self._change_watch.due is None or self._has_jobs or self._engine.busy:
                self._iterate(accept=self._change_watch.due is None)
                self._linger(stopping)
            elif self._queue.is_busy:  # the last poll may have claimed jobs
                self._watchdog.note_running()
                self._calls.run_callbacks(OUTCOME_WAIT_SECONDS)
            else:
                return
        seconds = self._settings.drain_seconds
        if self._has_jobs:
            log.info("draining", jobs=len(self._attempts) + len(self._admission), seconds=seconds)
        while self._has_jobs and time.monotonic() < stopping.asked_at + seconds:
            self._iterate(accept=False)
        self._requeue_all()

    @property
    def _has_jobs(self) -> bool:
        return bool(self._attempts or self._admission)

    def _iterate(self, *, accept: bool) -> None:
        self._watchdog.note_running()
        self._heartbeat_if_due()
        if self._read_inbox(accept=accept) and self._engine.busy:
            self._await_newcomers()
        # the last report of a job that runs alone is evidence if the worker dies (jobs.contract.worker_deaths)
        is_alone = any(attempt.claim.alone for attempt in self._attempts.all)
        report = self._engine.iterate(ahead=not is_alone)
        self._next_step_at = time.monotonic() + launch_delay(self._engine.seconds_ahead, self._engine.host_seconds)
        if report is not None:
            self._apply(report)
        if is_alone:
            self._await_report()
        self._calls.run_callbacks(self._wait_seconds)
        if accept and not self._has_jobs and not self._engine.busy:
            self._auditing.run_if_due()

    @property
    def _wait_seconds(self) -> float:
        if self._engine.busy:
            return 0.0
        return OUTCOME_WAIT_SECONDS if self._has_jobs else LOOK_SECONDS

    def _linger(self, stopping: Stopping) -> None:
        """Delay the next step for new jobs, as long as the device stays busy without it."""
        while (
            self._engine.seconds_ahead and not stopping.is_set() and (left := self._next_step_at - time.monotonic()) > 0
        ):
            self._watchdog.note_running()
            self._calls.run_callbacks(min(left, LINGER_SECONDS))

    def _requeue_all(self) -> None:
        """Write checkpoints of all jobs in flight and requeue them."""
        self._requeues = True
        written_by = time.monotonic() + LAST_WRITES_SECONDS
        while any(attempt.num_unstored for attempt in self._attempts.all) and time.monotonic() < written_by:
            # a job with an image between engine and store gets no checkpoint
            self._calls.run_callbacks(OUTCOME_WAIT_SECONDS)
        self._checkpoints.write_last(self._attempts.all, written_by)
        self._admission.requeue_all()
        self._attempts.requeue_all()
        while self._queue.is_busy:  # as long as the inbox waits for Redis; the last poll may have claimed jobs
            self._watchdog.note_running()
            self._calls.run_callbacks(OUTCOME_WAIT_SECONDS)

    def _await_newcomers(self) -> None:
        until = time.monotonic() + JOIN_SECONDS
        while self._queue.is_polling and (left := until - time.monotonic()) > 0:
            self._calls.run_callbacks(left)

    def _await_report(self) -> None:
        """Wait until Redis has the last step of a job that runs alone, because the next step may end the process."""
        until = time.monotonic() + REPORT_SECONDS
        while self._queue.is_reporting and (left := until - time.monotonic()) > 0:
            self._watchdog.note_running()
            self._calls.run_callbacks(min(left, LINGER_SECONDS))

    def _read_inbox(self, *, accept: bool) -> bool:
        """Poll for jobs and cancellations; False if the last poll has not ended, because Redis is slow."""
        if self._queue.is_polling:
            return False
        is_idle = not self._has_jobs
        takes = accept and self._attempts.may_take_more
        self._queue.poll(
            room=self._room(QUEUE_DEPTH) if takes else 0,
            spare=self._room(QUEUE_DEPTH_AT_MOST) if takes else 0,
            would_run=self._newcomers(),
            wait_seconds=IDLE_WAIT_SECONDS if is_idle else 0.0,  # also if nothing may be claimed: no busy loop
            then=self._obey,
        )
        return True

    def _obey(self, command: Submit | Cancel) -> None:
        match command:
            case Submit(claim) if self._requeues:
                self._attempts.requeue(claim)
            case Submit(claim):
                self._admission.submit(claim)
            case Cancel(job_id):
                self._drop(job_id)

    def _room(self, depth: int) -> int:
        return max(0, depth * self._engine.max_rows - self._engine.rows_in_flight - self._admission.num_rows)

    def _newcomers(self) -> WouldRun:
        """A function, for any thread, that returns whether a job would run at once although the batches are full."""
        scheduler, stages, pipelines = self._engine.scheduler, self._engine.stages, self._loaded.pipelines
        most_slack = scheduler.slack_of_newcomers()  # on the loop's thread, which alone changes the scheduler

        def would_run(model: str, priority: Priority, work: Mapping[str, int]) -> bool:
            steps = [(pipelines[model].stage_key(stage), row_steps) for stage, row_steps in work.items()]
            is_offered = all(stage in stages for stage, _ in steps)  # otherwise it fails when it is claimed
            return is_offered and scheduler.slack(steps, priority) < most_slack

        return would_run

    def _apply(self, report: StepReport) -> None:
        stage, rows, seconds = self._engine.stages[report.stage].name, report.num_rows, report.seconds
        if report.lowered:
            log.warning("out_of_memory", stage=stage, rows=rows, row_shapes_left=report.lowered)
        if report.is_whole:
            self._engine.costs.note(report.stage, report.row_shape, seconds)
        self._auditing.note(report)
        self._loaded.metrics.stepped(stage, rows, report.row_shape, seconds, self._engine.rows_in_flight)
        touched: dict[str, Attempt] = {}
        for trajectory in report.moved:
            attempt = self._attempts.of(trajectory.request.job_id)
            assert attempt is not None
            attempt.moved(trajectory, stage, seconds / rows)
            touched[trajectory.request.job_id] = attempt
        if self._spans.are_on:
            self._spans.stepped(stage, report, {job_id: attempt.claim for job_id, attempt in touched.items()})
        for job_id, error in report.failed.items():
            self._attempts.blame(job_id, error, "the engine could not compute this job's images")
        shown = {
            key: (attempt, pixels) for key, pixels in report.previews.items() if (attempt := self._attempts.of(key[0]))
        }
        self._image_writer.show(shown, stage)
        for finished in report.finished:
            if finished.request.plans[-1].direction is Direction.ENCODE:
                self._admission.add_latent(finished)
            else:
                self._hand_over(finished)
        here = [attempt for attempt in touched.values() if self._attempts.has(attempt) and not attempt.is_computed]
        self._queue.progress([(attempt.claim, attempt.progress()) for attempt in here])
        for attempt in here:
            self._checkpoints.write_if_due(attempt)

    def _hand_over(self, finished: Finished) -> None:
        if (attempt := self._attempts.of(finished.request.job_id)) is None:
            return  # its job failed or was dropped in this step
        attempt.left(finished)
        while self._image_writer.is_full and not attempt.forgotten:
            self._watchdog.note_running()
            self._heartbeat_if_due()  # no lease may end because the store is slow
            self._calls.run_callbacks(OUTCOME_WAIT_SECONDS)
        if not attempt.forgotten:
            self._image_writer.store(attempt, finished)

    def _publish(self, attempt: Attempt, outcome: Outcome) -> None:
        """Publish a preview or a stored image, or handle the error of storing it."""
        match outcome:
            case Preview():
                self._queue.preview(attempt.claim, outcome)
            case ImageRecord():
                self._attempts.stored(attempt, outcome)
            case UnavailableError():
                self._attempts.requeue_after_outage(attempt.claim, outcome)
            case UnstorableError():
                log.error("unstorable", **attempt.claim.ids, error=str(outcome))
                detail = "the store takes other images, but not this job's"
                self._attempts.fail(attempt, FailureKind.STORE_FAILED, detail, retry=True)

    def _drop(self, job_id: str) -> None:
        """Remove a job that was cancelled or that another worker has claimed."""
        if claim := self._admission.forget(job_id):
            self._attempts.cancelled(claim)
        elif attempt := self._attempts.of(job_id):
            self._attempts.drop(attempt)

    def _heartbeat_if_due(self) -> None:
        if time.monotonic() < self._next_heartbeat:
            return
        self._next_heartbeat = time.monotonic() + self._settings.heartbeat_seconds
        self._loaded.metrics.in_filing.set(self._image_writer.num_pending)
        self._queue.heartbeat(*self._loaded.report(), self._drop)
        self._change_watch.look()

    def _hangs(self, silent_seconds: float) -> None:
        """End the process, from another thread: a step cannot be interrupted, and other workers recover its jobs."""
        stage, rows = self._engine.last_launch
        log.critical("step_hangs", stage=stage, rows=rows, silent_seconds=round(silent_seconds), status=HUNG_STATUS)
        end_process()
