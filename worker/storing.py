"""Storing images with patience: a store that is away is one thing, an image that it will never take another."""

import time
from collections.abc import Callable

from jobs.errors import AdmError, UnavailableError
from jobs.images import ImageStore
from jobs.job import ImageRecord
from worker.taking import Claim

PATIENCE_SECONDS = 10.0  # for a store that does not answer
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 0.5
REFUSALS = 3  # of one image, while the store took the same bytes elsewhere each time


class UnstorableError(AdmError):
    """The store takes others' images, but not this one."""


def put_patiently(
    store: ImageStore, claim: Claim, index: int, png: bytes, meanwhile: Callable[[], None], waited: float = 0.0
) -> ImageRecord:
    """Store an image, again and again if need be; `meanwhile` is called between two calls of the store.

    `waited` seconds of the patience are spent already.

    Raises: UnavailableError when the store stays away; UnstorableError.
    """
    gives_up_at, pause, refusals = time.monotonic() + PATIENCE_SECONDS - waited, FIRST_PAUSE_SECONDS, 0
    while True:
        try:
            return store.put(claim.job_id, claim.token, index, png)
        except UnavailableError as error:
            meanwhile()  # a call of a silent store takes seconds
            if store.takes(png):
                refusals += 1
                if refusals == REFUSALS:
                    raise UnstorableError(str(error)) from error
            elif time.monotonic() > gives_up_at:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        meanwhile()
