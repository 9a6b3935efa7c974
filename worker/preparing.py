"""Fetching what a job starts from before its images enter the engine: its pictures and its checkpoint."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from datasets.image_folder import square_pixels
from jobs.callers.caller import ANONYMOUS
from jobs.contract.errors import UnavailableError
from jobs.contract.job import CheckpointRecord
from jobs.storage.files import FileStore
from worker.job_state import JobState, UnusableCheckpointError
from worker.taking import Claim

Load = Callable[[Claim, CheckpointRecord], JobState]
"""Reads a checkpoint. Raises: UnusableCheckpointError, UnavailableError."""


@dataclass(frozen=True)
class Prepared:
    """Pictures [3, H, W], uint8, by file, and the state that a job goes on from.

    starts_over says why a checkpoint that the job has cannot be used.
    """

    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    state: JobState | None = None
    starts_over: str = ""


@dataclass
class Preparation:
    """A claimed job that is not in the engine yet."""

    claim: Claim
    forgotten: bool = False


def needs_preparing(claim: Claim) -> bool:
    """Whether a job needs anything from the store."""
    return bool(claim.request.images) or claim.checkpoint is not None


def prepare(preparation: Preparation, size: int, files: FileStore, load: Load) -> Prepared:
    """Fetch and decode what a job starts from; size is that of the squares that the base stage takes. For any thread.

    Raises: RefusedError for a picture that is gone; UnavailableError and redis-py's errors.
    """
    claim, pictures = preparation.claim, {}
    for each in set(claim.request.images):
        if preparation.forgotten:
            return Prepared()
        png = files.png(each, ANONYMOUS)  # its caller was asked for when the job was submitted
        picture = Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB")
        pictures[each] = square_pixels(picture, size)
    if claim.checkpoint is None or preparation.forgotten:
        return Prepared(pictures)
    try:
        return Prepared(pictures, load(claim, claim.checkpoint))
    except (UnusableCheckpointError, UnavailableError) as error:
        return Prepared(pictures, starts_over=str(error))
