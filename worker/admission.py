"""Admission of claimed jobs to the engine: threads fetch a job's inputs, then its images join the next step."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog
import torch
from torch import Tensor

from engine.errors import UnknownOfferError
from engine.pipeline import BASE
from engine.step_times import timer_on
from engine.steps import Finished
from jobs.contract.errors import FailureKind, RefusedError, UnavailableError
from jobs.contract.job import Usage
from jobs.queue.availability import is_unavailable
from jobs.storage.files import FileStore
from worker.attempts import Attempt, Attempts
from worker.background_calls import BackgroundCalls
from worker.checkpoints import Checkpoints
from worker.claim import Claim
from worker.job_inputs import JobInputs, Preparation, fetch_inputs, needs_inputs
from worker.job_plans import pipeline_of, plan_job, top_classes
from worker.job_spans import JobSpans
from worker.loaded_pipelines import LoadedPipelines

log = structlog.get_logger("worker.admission")

THREADS = 2  # one slow object must not delay all other jobs that start from pictures


class Admission:
    """The claimed jobs of a worker that have not entered the engine yet. All methods are for the loop's thread."""

    def __init__(
        self,
        loaded: LoadedPipelines,
        attempts: Attempts,
        checkpoints: Checkpoints,
        files: FileStore,
        calls: BackgroundCalls,
        spans: JobSpans,
    ) -> None:
        self._loaded, self._engine, self._attempts = loaded, loaded.engine, attempts
        self._checkpoints, self._files, self._calls, self._spans = checkpoints, files, calls, spans
        self._threads = ThreadPoolExecutor(THREADS, "preparing")
        self._preparing: dict[str, Preparation] = {}  # by job

    def __len__(self) -> int:
        return len(self._preparing)

    @property
    def num_rows(self) -> int:
        """The number of images that will enter the engine."""
        return sum(each.claim.request.num_rows for each in self._preparing.values())

    def submit(self, claim: Claim) -> None:
        """Let a job's images join the next step, or if the job has inputs, the first step after these are fetched."""
        self.forget(claim.job_id)
        if stale := self._attempts.of(claim.job_id):
            # its lease ended while Redis was unavailable, and no heartbeat has reported it yet
            self._attempts.forget(stale)
        # The service has checked the request, but another program may have written the job to Redis.
        try:
            pipeline = pipeline_of(claim.request, self._loaded.pipelines)
        except UnknownOfferError as error:
            self._attempts.fail_claim(claim, FailureKind.NOT_OFFERED, str(error), retry=False)
            return
        if not needs_inputs(claim):
            self._enter(claim, JobInputs())
            return
        preparation = self._preparing[claim.job_id] = Preparation(claim)
        size = pipeline.stack.base.network.config.image_size

        def fetch() -> JobInputs | Exception:
            try:
                return fetch_inputs(preparation, size, self._files, self._checkpoints.load)
            except Exception as error:  # noqa: BLE001 - an error of one job must not affect others
                return error

        self._calls.start(self._threads, fetch, partial(self._prepared, preparation))

    def forget(self, job_id: str) -> Claim | None:
        """Forget a job that has not entered the engine; return its claim, if it has one."""
        if preparation := self._preparing.pop(job_id, None):
            preparation.forgotten = True
            return preparation.claim
        return None

    def requeue_all(self) -> None:
        for job_id in reversed(list(self._preparing)):
            if claim := self.forget(job_id):
                self._attempts.requeue(claim)

    def close(self) -> None:
        """Stop the threads; return when the running calls to the store have ended."""
        self._threads.shutdown(cancel_futures=True)

    def _prepared(self, preparation: Preparation, outcome: JobInputs | Exception) -> None:
        if preparation.forgotten:
            return
        claim = preparation.claim
        del self._preparing[claim.job_id]
        if isinstance(outcome, Exception):
            self._refuse(claim, outcome)
        else:
            self._enter(claim, outcome)

    def _enter(self, claim: Claim, prepared: JobInputs) -> None:
        try:
            plan = plan_job(claim.job_id, claim.request, self._loaded.pipelines, prepared.pictures)
            for image in plan.frames:
                self._engine.check(image)
            resumed = self._checkpoints.enter(claim, plan, prepared)
        except torch.AcceleratorError:
            raise  # as in the engine: the device is lost, and the process with it
        except Exception as error:  # noqa: BLE001 - an error of one job must not affect others
            self._engine.abort(claim.job_id)
            self._refuse(claim, error)
        else:
            attempt = Attempt(claim, plan, resumed)
            self._attempts.add(attempt)
            if plan.pictures:
                self._classify(attempt, plan.pictures)

    def _refuse(self, claim: Claim, error: Exception) -> None:
        """Fail or requeue a job that could not enter the engine, by the kind of error."""
        if isinstance(error, UnknownOfferError):
            self._attempts.fail_claim(claim, FailureKind.NOT_OFFERED, str(error), retry=False)
        elif isinstance(error, RefusedError):
            self._attempts.fail_claim(claim, FailureKind.FILE_GONE, str(error), retry=False)
        elif isinstance(error, UnavailableError | torch.OutOfMemoryError) or is_unavailable(error):
            self._attempts.requeue_after_outage(claim, error)
        else:
            log.error("submit_failed", **claim.ids, error=f"{type(error).__name__}: {error}")
            detail = "the worker could not prepare this job's images"
            self._attempts.fail_claim(claim, FailureKind.STEP_FAILED, detail, retry=True)

    def _classify(self, attempt: Attempt, pictures: Sequence[Tensor]) -> None:
        """Complete a job of kind score, which needs the classifier alone: less work than a step of the engine."""
        pipeline = self._loaded.pipelines[attempt.claim.request.model]
        stage = self._engine.stages[pipeline.stage_key(BASE)]
        timer = timer_on(stage.device)
        try:
            answers = stage.classify(torch.stack(list(pictures)))
            timer.end()
            seconds = timer.wait()
        except torch.AcceleratorError:
            raise  # as in the engine: the device is lost, and the process with it
        except Exception as error:  # noqa: BLE001 - an error of one job must not affect others
            self._attempts.blame(attempt.claim.job_id, error, "the worker could not classify this job's images")
            return
        self._spans.classified(stage.name, attempt.claim, len(pictures), seconds)
        usage = Usage(steps=len(pictures), device_seconds=round(seconds, 4))
        scores = [top_classes(each, pipeline.stack.class_names) for each in answers]
        self._attempts.complete(attempt, [], usage, {"scores": scores})

    def add_latent(self, finished: Finished) -> None:
        """Note the latent of an encoding; after the last one, add the frames between the two latents to the engine."""
        if (attempt := self._attempts.of(finished.request.job_id)) is None:
            return
        try:
            for frame in attempt.encoded(finished):
                self._engine.add(frame)
        except torch.AcceleratorError:
            raise
        except Exception as error:  # noqa: BLE001 - an error of one job must not affect others
            self._attempts.blame(attempt.claim.job_id, error, "the worker could not prepare this job's frames")
