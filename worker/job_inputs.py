"""Fetches a job's inputs before its images enter the engine: its pictures and its checkpoint."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from datasets.image_folder import square_pixels
from jobs.contract.caller import ANONYMOUS
from jobs.contract.errors import UnavailableError
from jobs.contract.job import CheckpointRecord
from jobs.storage.files import FileStore
from worker.claim import Claim
from worker.job_state import JobState, UnusableCheckpointError

Load = Callable[[Claim, CheckpointRecord], JobState]
"""Reads a checkpoint. Raises: UnusableCheckpointError, UnavailableError."""


@dataclass(frozen=True)
class JobInputs:
    """The uploads by file id, [3, H, W] uint8, and the state from which the job resumes.

    starts_over: the reason why the job's checkpoint cannot be used, or "".
    """

    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    state: JobState | None = None
    starts_over: str = ""


@dataclass
class Preparation:
    """A claimed job that is not in the engine yet."""

    claim: Claim
    forgotten: bool = False


def needs_inputs(claim: Claim) -> bool:
    """Return whether a job needs pictures or a checkpoint from the store."""
    return bool(claim.request.images) or claim.checkpoint is not None


def fetch_inputs(preparation: Preparation, size: int, files: FileStore, load: Load) -> JobInputs:
    """Fetch and decode a job's inputs; size: edge of the base stage's squares, in pixels. For any thread.

    Raises: RefusedError for a picture that no longer exists; UnavailableError and redis-py's errors.
    """
    claim, pictures = preparation.claim, {}
    for each in set(claim.request.images):
        if preparation.forgotten:
            return JobInputs()
        png = files.png(each, ANONYMOUS)  # the caller's right to it was checked at submission
        picture = Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB")
        pictures[each] = square_pixels(picture, size)
    if claim.checkpoint is None or preparation.forgotten:
        return JobInputs(pictures)
    try:
        return JobInputs(pictures, load(claim, claim.checkpoint))
    except (UnusableCheckpointError, UnavailableError) as error:
        return JobInputs(pictures, starts_over=str(error))
