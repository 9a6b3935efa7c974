"""Encoding images and storing them on a thread of its own, so that the engine goes on meanwhile."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engine.pipeline import Pipeline
from engine.steps import Finished
from jobs.errors import AdmError, UnavailableError
from jobs.events import Preview
from jobs.images import ImageStore
from jobs.job import ImageRecord
from worker.job_run import JobRun
from worker.png import describe, encode
from worker.storing import UnstorableError, put_patiently

MOST_IN_HAND = 64  # 50 MB of pixels at 512x512
PREVIEWS_UP_TO = 32  # in hand; beyond that they are left out, so that images need not wait for them


class ForgottenError(AdmError):
    """Nobody wants the image any more."""


Outcome = Preview | ImageRecord | UnavailableError | UnstorableError | None
"""A preview to be shown, a stored image to be published, why it could not be stored; None for a forgotten job's."""


@dataclass(frozen=True)
class InHand:
    """One picture that waits for its encoding or the store."""

    run: JobRun
    outcome: Future[Outcome]


class Filing:
    """One worker's; all its methods are for the loop's thread.

    Its own thread reads what never changes (claims, pixels on the host) and whether a job is forgotten; whatever comes
    of that, Redis and the engine are the loop's.
    """

    def __init__(self, store: ImageStore, pipelines: Mapping[str, Pipeline], numerics: str) -> None:
        self._store, self._pipelines, self._numerics = store, pipelines, numerics
        self._thread = ThreadPoolExecutor(1, "filing")
        self._in_hand: deque[InHand] = deque()

    @property
    def is_full(self) -> bool:
        """Whether the next image has to wait until others are done."""
        return len(self._in_hand) >= MOST_IN_HAND

    def show(self, previews: Mapping[tuple[str, int], Tensor], stage: str, runs: Mapping[str, JobRun]) -> None:
        """Encode what images that took a step of a stage are going to be, where there is time."""
        now = time.monotonic()
        for (job_id, index), pixels in previews.items():
            if (run := runs.get(job_id)) is None:
                continue
            if len(self._in_hand) < PREVIEWS_UP_TO and run.shows_previews(index, now):
                self._submit(run, _encode_preview, run, index, stage, run.place(index), pixels)

    def store(self, run: JobRun, finished: Finished) -> None:
        """Encode and store an image."""
        self._submit(run, self._store_image, run, finished.request.index, finished.pixels, time.monotonic())

    def results(self, wait_seconds: float) -> Iterator[tuple[JobRun, Outcome]]:
        """What became of pictures of jobs that are not forgotten, in the order they came.

        Waits only while something is in hand and nothing is done. Raises: what else went wrong on the thread.
        """
        if self._in_hand and wait_seconds > 0:
            wait([self._in_hand[0].outcome], wait_seconds)
        while self._in_hand and self._in_hand[0].outcome.done():
            done = self._in_hand.popleft()
            outcome = done.outcome.result()
            if not done.run.forgotten:
                yield done.run, outcome

    def close(self) -> None:
        """Drop what is in hand; returns when the store has answered a call that it is at."""
        for each in self._in_hand:
            each.run.forgotten = True
        self._thread.shutdown(cancel_futures=True)

    def _submit(self, run: JobRun, *call: Any) -> None:
        self._in_hand.append(InHand(run, self._thread.submit(*call)))

    def _store_image(self, run: JobRun, index: int, pixels: Tensor, handed_over_at: float) -> Outcome:
        claim = run.claim

        def stop_if_forgotten() -> None:
            if run.forgotten:
                raise ForgottenError

        try:
            stop_if_forgotten()
            pipeline = self._pipelines[claim.request.model]
            png = encode(pixels, describe(claim.request, index, pipeline, self._numerics))
            waited = time.monotonic() - handed_over_at  # or a store that is away would cost each its own patience
            return put_patiently(self._store, claim, index, png, stop_if_forgotten, waited)
        except (UnavailableError, UnstorableError) as error:
            return error
        except ForgottenError:
            return None


def _encode_preview(run: JobRun, index: int, stage: str, place: tuple[int, int], pixels: Tensor) -> Outcome:
    return None if run.forgotten else Preview(index, stage, *place, encode(pixels))
