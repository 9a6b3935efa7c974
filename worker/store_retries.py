"""Stores images with retries, and distinguishes an unavailable store from an image that the store always refuses."""

import time
from collections.abc import Callable

from jobs.contract.errors import AdmError, UnavailableError
from jobs.contract.job import ImageRecord
from jobs.storage.images import ImageStore
from worker.claim import Claim

PATIENCE_SECONDS = 10.0  # how long an image waits for a store that does not answer
MOMENT_SECONDS = 5.0  # after a failure, an image that has waited PATIENCE_SECONDS is given up without a call
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 0.5
NEVER = float("-inf")
REFUSALS = 3  # tries of one image that failed although the store took the same bytes under another key


class UnstorableError(AdmError):
    """The store accepts other images, but not this one."""


class RetryingStore:
    """Stores images with retries, and remembers when the store last failed. For one thread."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._failed_at = NEVER

    def check(self, waited: float) -> None:
        """Give an image up without a call to the store, which may take seconds, if another call has just failed.

        Raises: UnavailableError if the image has waited PATIENCE_SECONDS and the store failed within MOMENT_SECONDS.
        """
        if waited >= PATIENCE_SECONDS and self._failed_a_moment_ago:
            raise UnavailableError(f"the image store has just failed again, after {PATIENCE_SECONDS:g} s of tries")

    def put_with_retries(
        self, claim: Claim, index: int, png: bytes, meanwhile: Callable[[], None], waited: float = 0.0
    ) -> ImageRecord:
        """Store an image, with retries; `meanwhile` is called between two calls to the store.

        `waited`: seconds of PATIENCE_SECONDS that the image has waited already.

        Raises: UnavailableError if the store stays unavailable; UnstorableError.
        """
        self.check(waited)
        gives_up_at, pause, refusals = time.monotonic() + PATIENCE_SECONDS - waited, FIRST_PAUSE_SECONDS, 0
        while True:
            failed_before = self._failed_a_moment_ago
            try:
                record = self._store.put(claim.job_id, claim.token, index, png)
            except UnavailableError as error:
                meanwhile()  # a call of a silent store takes seconds
                if failed_before and time.monotonic() >= gives_up_at:
                    self._failed_at = time.monotonic()
                    raise  # without a try under another key: the images behind this one wait for each call
                if self._store.takes(png):
                    self._failed_at = NEVER
                    refusals += 1
                    if refusals == REFUSALS:
                        raise UnstorableError(str(error)) from error
                else:
                    self._failed_at = time.monotonic()
                    if time.monotonic() + pause >= gives_up_at:
                        raise
            else:
                self._failed_at = NEVER
                return record
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            meanwhile()

    @property
    def _failed_a_moment_ago(self) -> bool:
        return time.monotonic() - self._failed_at < MOMENT_SECONDS
