"""Encodes and stores images on a thread of its own, so that the engine need not wait."""

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
from worker.attempts import Attempt
from worker.auditing import Numerics
from worker.background_calls import BackgroundCalls
from worker.job_spans import JobSpans
from worker.png import describe, encode
from worker.store_retries import RetryingStore, UnstorableError

MAX_PENDING = 64  # images and previews; 50 MB of pixels at 512x512
MAX_PENDING_FOR_PREVIEWS = 32  # beyond it previews are dropped, so that images need not wait for them


class ForgottenError(AdmError):
    """The image's job has left this worker, or the worker stops."""


Outcome = Preview | ImageRecord | UnavailableError | UnstorableError | None
"""A preview or a stored image to publish, or the error of storing it; None if the image's job has left."""


class ImageWriter:
    """Encodes and stores the images of one worker. All methods are for the loop's thread.

    The writer's own thread reads claims and pixels on the host, which never change, and whether a job is forgotten.
    `publish` gets the outcome of each image and preview in their order, unless the job is forgotten.
    """

    def __init__(
        self,
        store: ImageStore,
        pipelines: Mapping[str, Pipeline],
        numerics: Numerics,
        calls: BackgroundCalls,
        spans: JobSpans,
        publish: Callable[[Attempt, Outcome], None],
    ) -> None:
        self._store, self._pipelines, self._numerics = RetryingStore(store), pipelines, numerics
        self._calls, self._spans, self._publish = calls, spans, publish
        self._thread = ThreadPoolExecutor(1, "images")
        self._closing = False
        self._pending = 0

    @property
    def num_pending(self) -> int:
        """Images and previews that are not encoded and stored yet."""
        return self._pending

    @property
    def is_full(self) -> bool:
        """Return whether the next image must wait until a pending one is done."""
        return self._pending >= MAX_PENDING

    def show(self, previews: Mapping[tuple[str, int], tuple[Attempt, Tensor]], stage: str) -> None:
        """Encode previews of images that took a step of a stage, if there is time."""
        now = time.monotonic()
        for (_, index), (attempt, pixels) in previews.items():
            if self._pending < MAX_PENDING_FOR_PREVIEWS and attempt.shows_previews(index, now):
                self._submit(attempt, partial(_encode_preview, attempt, index, stage, attempt.reached(index), pixels))

    def store(self, attempt: Attempt, finished: Finished) -> None:
        """Encode and store an image."""
        self._submit(
            attempt, partial(self._store_image, attempt, finished.request.index, finished.pixels, time.monotonic())
        )

    def close(self) -> None:
        """Drop pending images; return when the running call to the store has ended."""
        self._closing = True
        self._thread.shutdown(cancel_futures=True)

    def _submit(self, attempt: Attempt, call: Callable[[], Outcome]) -> None:
        self._pending += 1

        def over(outcome: Outcome) -> None:
            self._pending -= 1
            if not attempt.forgotten:
                self._publish(attempt, outcome)

        self._calls.start(self._thread, call, over)

    def _store_image(self, attempt: Attempt, index: int, pixels: Tensor, handed_over_at: float) -> Outcome:
        claim = attempt.claim

        def stop_if_forgotten() -> None:
            if attempt.forgotten or self._closing:
                raise ForgottenError

        try:
            stop_if_forgotten()
            self._store.check(time.monotonic() - handed_over_at)
            pipeline = self._pipelines[claim.request.model]
            with self._spans.part(claim, "encode", index):
                png = encode(pixels, describe(claim.request, index, pipeline, self._numerics.of(claim.request.model)))
            waited = time.monotonic() - handed_over_at  # otherwise each image would wait for an unavailable store again
            with self._spans.part(claim, "store", index):
                return self._store.put_with_retries(claim, index, png, stop_if_forgotten, waited)
        except (UnavailableError, UnstorableError) as error:
            return error
        except ForgottenError:
            return None


def _encode_preview(attempt: Attempt, index: int, stage: str, reached: tuple[int, int], pixels: Tensor) -> Outcome:
    return None if attempt.forgotten else Preview(index, stage, *reached, encode(pixels))
