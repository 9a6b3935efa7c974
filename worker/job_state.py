"""The state of a job between two steps, and its form in bytes: a safetensors file with metadata."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from engine.trajectory import ImageState
from jobs.contract.errors import AdmError
from jobs.contract.job import ImageRecord
from jobs.contract.request import ResolvedRequest
from jobs.redis.payload import fixed_form
from worker.job_plans import JobPlan

VERSION = 1  # of the format
FACTS = "adm-checkpoint"


class UnusableCheckpointError(AdmError):
    """A job cannot resume from this checkpoint."""


@dataclass(frozen=True)
class JobState:
    """A job between two steps; indices are those of its images.

    latents: of an interpolation's image that is encoded, while the other image is not. in_flight: states of the images
    in the engine.
    """

    images: list[ImageRecord]
    errors: dict[int, dict[str, float | None]]
    steps_done: dict[int, int]
    device_seconds: float
    latents: dict[int, Tensor]
    in_flight: Mapping[int, ImageState]

    @property
    def num_bytes(self) -> int:
        """Size of its tensors in a file, in bytes."""
        return sum(each.nbytes for each in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are written, by name; a solver's memory is omitted if it is zero."""
        tensors = {f"latent/{index}": each for index, each in self.latents.items()}
        for index, image in self.in_flight.items():
            tensors[f"x/{index}"] = image.x
            if image.memory.any():
                tensors[f"memory/{index}"] = image.memory
            if image.low_res is not None:
                tensors[f"low_res/{index}"] = image.low_res
        return tensors

    def copied(self) -> "JobState":
        """A copy in the host's memory, for a thread that reads it while the engine goes on."""

        def copy(values: Tensor) -> Tensor:
            return values.cpu().clone(memory_format=torch.contiguous_format)

        in_flight = {
            index: replace(
                image,
                x=copy(image.x),
                memory=copy(image.memory),
                low_res=None if image.low_res is None else copy(image.low_res),
            )
            for index, image in self.in_flight.items()
        }
        latents = {index: copy(each) for index, each in self.latents.items()}
        return replace(self, latents=latents, in_flight=in_flight)

    def fits(self, plan: JobPlan) -> bool:
        """Return whether stored images and images in flight together are the images that the plan has at this point."""
        here = self.in_flight.keys() | {each.index for each in self.images}
        frames, images = ({each.index for each in requests} for requests in (plan.frames, plan.images))
        if frames and not here & frames:
            here |= self.latents.keys()  # the frames enter when both encodings have ended
        else:
            images = frames or images
        return bool(self.in_flight) and here == images


class Facts(BaseModel):
    """The fields of a state that are not tensors."""

    version: int
    numerics: str
    request: str
    images: list[ImageRecord]
    errors: dict[int, dict[str, float | None]]
    steps_done: dict[int, int]
    device_seconds: float
    places: dict[int, tuple[int, int]]  # stage_index and row of the images in flight


def to_bytes(state: JobState, request: ResolvedRequest, numerics: str) -> bytes:
    """Serialise a `copied` state to a safetensors file, which refuses tensors that share memory."""
    facts = Facts(
        version=VERSION,
        numerics=numerics,
        request=digest(request),
        images=state.images,
        errors=state.errors,
        steps_done=state.steps_done,
        device_seconds=state.device_seconds,
        places={index: (image.stage_index, image.row) for index, image in state.in_flight.items()},
    )
    return save(state.tensors(), {FACTS: facts.model_dump_json()})


def from_bytes(data: bytes, request: ResolvedRequest, numerics: str) -> JobState:
    """The state that `to_bytes` wrote. Raises: UnusableCheckpointError for other bytes, another request or numerics."""
    try:
        tensors = load(data)
        header_bytes = int.from_bytes(data[:8], "little")  # `load` has checked this
        facts = Facts.model_validate_json(json.loads(data[8 : 8 + header_bytes])["__metadata__"][FACTS])
    except (SafetensorError, ValidationError, ValueError, KeyError) as error:
        raise UnusableCheckpointError("the checkpoint is damaged, or of another version") from error
    if (facts.version, facts.numerics, facts.request) != (VERSION, numerics, digest(request)):
        raise UnusableCheckpointError("the checkpoint is of another version, request or numerics")
    return JobState(
        facts.images,
        facts.errors,
        facts.steps_done,
        facts.device_seconds,
        {int(name.removeprefix("latent/")): each for name, each in tensors.items() if name.startswith("latent/")},
        {index: _image(tensors, index, *place) for index, place in facts.places.items()},
    )


def _image(tensors: Mapping[str, Tensor], index: int, stage_index: int, row: int) -> ImageState:
    try:
        x = tensors[f"x/{index}"]
    except KeyError as error:
        raise UnusableCheckpointError(f"image {index} is not in the checkpoint") from error
    memory = tensors.get(f"memory/{index}", torch.zeros_like(x))
    return ImageState(stage_index, row, x, memory, tensors.get(f"low_res/{index}"))


def digest(request: ResolvedRequest) -> str:
    """SHA-256 of a request with all its fields."""
    return hashlib.sha256(fixed_form(request).encode()).hexdigest()
