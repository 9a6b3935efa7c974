"""How a claimed job enters the engine: what it starts from is fetched elsewhere, then its images join the next step."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog
import torch
from torch import Tensor

from engine.laps import lap_on
from engine.pipeline import BASE
from engine.sampling import UnknownOfferError
from engine.steps import Finished
from jobs.contract.errors import FailureKind, RefusedError, UnavailableError
from jobs.contract.job import Usage
from jobs.queue.availability import is_away
from jobs.storage.files import FileStore
from worker.checkpoints import Checkpoints
from worker.errands import Errands
from worker.held import Held
from worker.job_run import JobRun
from worker.job_spans import JobSpans
from worker.plans import pipeline_of, plan_job, top_classes
from worker.preparing import Preparation, Prepared, needs_preparing, prepare
from worker.runs import Runs
from worker.taking import Claim

log = structlog.get_logger("worker.entering")

THREADS = 2  # one slow object must not hold up all other jobs that start from pictures


class Entering:
    """The jobs of a worker that are claimed and not in the engine yet. All methods are for the loop's thread."""

    def __init__(
        self,
        held: Held,
        runs: Runs,
        checkpoints: Checkpoints,
        files: FileStore,
        errands: Errands,
        spans: JobSpans,
    ) -> None:
        self._held, self._engine, self._runs = held, held.engine, runs
        self._checkpoints, self._files, self._errands, self._spans = checkpoints, files, errands, spans
        self._threads = ThreadPoolExecutor(THREADS, "preparing")
        self._preparing: dict[str, Preparation] = {}  # by job

    def __len__(self) -> int:
        return len(self._preparing)

    @property
    def num_rows(self) -> int:
        """How many images are to come."""
        return sum(each.claim.request.num_rows for each in self._preparing.values())

    def submit(self, claim: Claim) -> None:
        """Let a job's images join the next step, or the one after what they start from is there."""
        self.forget(claim.job_id)
        if stale := self._runs.of(claim.job_id):
            self._runs.forget(stale)  # its lease ended while Redis was away, and no heartbeat has told us yet
        # The service has checked all this, but what lies in Redis may have come by another way.
        try:
            pipeline = pipeline_of(claim.request, self._held.pipelines)
        except UnknownOfferError as error:
            self._runs.fail_claim(claim, FailureKind.NOT_OFFERED, str(error), retry=False)
            return
        if not needs_preparing(claim):
            self._enter(claim, Prepared())
            return
        preparation = self._preparing[claim.job_id] = Preparation(claim)
        size = pipeline.stack.base.network.config.image_size

        def fetch() -> Prepared | Exception:
            try:
                return prepare(preparation, size, self._files, self._checkpoints.load)
            except Exception as error:  # noqa: BLE001 - whatever a job breaks must stay its own
                return error

        self._errands.start(self._threads, fetch, partial(self._prepared, preparation))

    def forget(self, job_id: str) -> Claim | None:
        """Do without a job that is not in the engine yet; its claim, if there is one."""
        if preparation := self._preparing.pop(job_id, None):
            preparation.forgotten = True
            return preparation.claim
        return None

    def give_back_all(self) -> None:
        for job_id in reversed(list(self._preparing)):
            if claim := self.forget(job_id):
                self._runs.give_back(claim)

    def close(self) -> None:
        """Return when the store has answered the calls that it is at."""
        self._threads.shutdown(cancel_futures=True)

    def _prepared(self, preparation: Preparation, outcome: Prepared | Exception) -> None:
        if preparation.forgotten:
            return
        claim = preparation.claim
        del self._preparing[claim.job_id]
        if isinstance(outcome, Exception):
            self._refuse(claim, outcome)
        else:
            self._enter(claim, outcome)

    def _enter(self, claim: Claim, prepared: Prepared) -> None:
        try:
            plan = plan_job(claim.job_id, claim.request, self._held.pipelines, prepared.pictures)
            for image in plan.frames:
                self._engine.check(image)
            resumed = self._checkpoints.enter(claim, plan, prepared)
        except torch.AcceleratorError:
            raise  # as in the engine: the device is lost, and the process with it
        except Exception as error:  # noqa: BLE001 - whatever a job breaks must stay its own
            self._engine.abort(claim.job_id)
            self._refuse(claim, error)
        else:
            run = JobRun(claim, plan, resumed)
            self._runs.add(run)
            if plan.pictures:
                self._classify(run, plan.pictures)

    def _refuse(self, claim: Claim, error: Exception) -> None:
        """Deal with a job that could not enter."""
        if isinstance(error, UnknownOfferError):
            self._runs.fail_claim(claim, FailureKind.NOT_OFFERED, str(error), retry=False)
        elif isinstance(error, RefusedError):
            self._runs.fail_claim(claim, FailureKind.FILE_GONE, str(error), retry=False)
        elif isinstance(error, UnavailableError | torch.OutOfMemoryError) or is_away(error):
            self._runs.put_back(claim, error)
        else:
            log.error("submit_failed", **claim.ids, error=f"{type(error).__name__}: {error}")
            detail = "the worker could not prepare this job's images"
            self._runs.fail_claim(claim, FailureKind.STEP_FAILED, detail, retry=True)

    def _classify(self, run: JobRun, pictures: Sequence[Tensor]) -> None:
        """Answer a job that asks for the classifier's opinion alone: less than a step of the engine."""
        pipeline = self._held.pipelines[run.claim.request.model]
        stage = self._engine.stages[pipeline.stage_key(BASE)]
        lap = lap_on(stage.device)
        try:
            answers = stage.classify(torch.stack(list(pictures)))
            lap.end()
            seconds = lap.wait()
        except torch.AcceleratorError:
            raise  # as in the engine: the device is lost, and the process with it
        except Exception as error:  # noqa: BLE001 - whatever these pictures break must stay their job's
            self._runs.blame(run.claim.job_id, error, "the classifier could not be asked about this job's images")
            return
        self._spans.classified(stage.name, run.claim, len(pictures), seconds)
        usage = Usage(steps=len(pictures), device_seconds=round(seconds, 4))
        scores = [top_classes(each, pipeline.stack.class_names) for each in answers]
        self._runs.complete(run, [], usage, {"scores": scores})

    def go_on_from(self, finished: Finished) -> None:
        """Note the latent of an encoding; the frames between two enter when it was the last."""
        if (run := self._runs.of(finished.request.job_id)) is None:
            return
        try:
            for frame in run.encoded(finished):
                self._engine.add(frame)
        except torch.AcceleratorError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a job's frames break must stay its own
            self._runs.blame(run.claim.job_id, error, "the worker could not prepare this job's frames")
