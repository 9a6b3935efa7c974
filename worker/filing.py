"""Encoding images and storing them on a thread of its own, so that the engine goes on meanwhile."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from torch import Tensor

from engine.pipeline import Pipeline
from engine.steps import Finished
from jobs.contract.errors import AdmError, UnavailableError
from jobs.contract.job import ImageRecord
from jobs.queue.events import Preview
from jobs.storage.images import ImageStore
from worker.auditing import Numerics
from worker.errands import Errands
from worker.job_run import JobRun
from worker.job_spans import JobSpans
from worker.png import describe, encode
from worker.storing import PatientStore, UnstorableError

MOST_IN_HAND = 64  # 50 MB of pixels at 512x512
PREVIEWS_UP_TO = 32  # in hand; beyond that they are left out, so that images need not wait for them


class ForgottenError(AdmError):
    """Nobody wants the image any more."""


Outcome = Preview | ImageRecord | UnavailableError | UnstorableError | None
"""A preview to be shown, a stored image to be published, why it could not be stored; None for a forgotten job's."""


class Filing:
    """One worker's; all its methods are for the loop's thread.

    Its own thread reads what never changes (claims, pixels on the host) and whether a job is forgotten. `filed` gets
    what became of each picture, in the order in which they came, unless its job is forgotten.
    """

    def __init__(
        self,
        store: ImageStore,
        pipelines: Mapping[str, Pipeline],
        numerics: Numerics,
        errands: Errands,
        spans: JobSpans,
        filed: Callable[[JobRun, Outcome], None],
    ) -> None:
        self._store, self._pipelines, self._numerics = PatientStore(store), pipelines, numerics
        self._errands, self._spans, self._filed = errands, spans, filed
        self._thread = ThreadPoolExecutor(1, "filing")
        self._closing = False
        self._in_hand = 0

    @property
    def num_in_hand(self) -> int:
        """Images and previews that are not encoded and stored yet."""
        return self._in_hand

    @property
    def is_full(self) -> bool:
        """Whether the next image has to wait until others are done."""
        return self._in_hand >= MOST_IN_HAND

    def show(self, previews: Mapping[tuple[str, int], tuple[JobRun, Tensor]], stage: str) -> None:
        """Encode what images that took a step of a stage are going to be, where there is time."""
        now = time.monotonic()
        for (_, index), (run, pixels) in previews.items():
            if self._in_hand < PREVIEWS_UP_TO and run.shows_previews(index, now):
                self._submit(run, partial(_encode_preview, run, index, stage, run.place(index), pixels))

    def store(self, run: JobRun, finished: Finished) -> None:
        """Encode and store an image."""
        self._submit(run, partial(self._store_image, run, finished.request.index, finished.pixels, time.monotonic()))

    def close(self) -> None:
        """Drop what is in hand; returns when the store has answered a call that it is at."""
        self._closing = True
        self._thread.shutdown(cancel_futures=True)

    def _submit(self, run: JobRun, call: Callable[[], Outcome]) -> None:
        self._in_hand += 1

        def over(outcome: Outcome) -> None:
            self._in_hand -= 1
            if not run.forgotten:
                self._filed(run, outcome)

        self._errands.start(self._thread, call, over)

    def _store_image(self, run: JobRun, index: int, pixels: Tensor, handed_over_at: float) -> Outcome:
        claim = run.claim

        def stop_if_forgotten() -> None:
            if run.forgotten or self._closing:
                raise ForgottenError

        try:
            stop_if_forgotten()
            self._store.check(time.monotonic() - handed_over_at)
            pipeline = self._pipelines[claim.request.model]
            with self._spans.part(claim, "encode", index):
                png = encode(pixels, describe(claim.request, index, pipeline, self._numerics.now))
            waited = time.monotonic() - handed_over_at  # or a store that is away would cost each its own patience
            with self._spans.part(claim, "store", index):
                return self._store.put_patiently(claim, index, png, stop_if_forgotten, waited)
        except (UnavailableError, UnstorableError) as error:
            return error
        except ForgottenError:
            return None


def _encode_preview(run: JobRun, index: int, stage: str, place: tuple[int, int], pixels: Tensor) -> Outcome:
    return None if run.forgotten else Preview(index, stage, *place, encode(pixels))
