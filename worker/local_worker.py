"""A worker without a queue: takes requests and returns pixels. `adm sample --local` runs one per device."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from engine.errors import NotFiniteError
from engine.loading import choose
from jobs.contract.errors import AdmError, SettingsError
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import ResolvedRequest
from jobs.settings import Settings
from models.checkpoints.network_file import WeightsError
from models.stack import outline_plan
from worker.error_texts import error_text
from worker.job_plans import plan_job
from worker.loading import choose_device, load, use_host
from worker.offers import offer, select
from worker.png import describe, encode


class OutOfMemoryError(AdmError):
    """The device's memory does not suffice, however small the batch."""


class LoadingError(AdmError):
    """Pipelines cannot be loaded; the message names a remedy."""


REFUSALS = (LoadingError, SettingsError, NotFiniteError, OutOfMemoryError)
"""Errors that are shown in one line, because their traceback does not help the user."""


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Turn errors of loading into a worker's one-line texts, and shorten torch's out-of-memory message.

    The texts name no setting, because each command has an option of its own for the pipeline.
    """
    try:
        yield
    except WeightsError as error:
        raise LoadingError(error_text(error, "")) from error
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            "its memory does not suffice, even for the smallest batch; finished images are kept"
        ) from error


class LocalWorker:
    """Pipelines on one device, loaded as by a worker with the same settings: same numerics, same pixels."""

    @one_line()
    def __init__(self, settings: Settings, device: str) -> None:
        use_host(settings)
        self._loaded = load(settings, choose_device(device), device)
        self.steps = 0  # evaluations by the engine, summed over images and stages
        self.device_seconds = 0.0

    def numerics_of(self, model: str) -> str:
        return self._loaded.numerics.of(model)

    @property
    def max_rows(self) -> int:
        return self._loaded.engine.max_rows

    @property
    def rows_in_flight(self) -> int:
        return self._loaded.engine.rows_in_flight

    @one_line()
    def add(self, job_id: str, request: ResolvedRequest, pictures: Mapping[str, bytes]) -> None:
        """Let the images of a request join the next step; pictures: the request's pictures by file id, [H, H, 3]
        uint8.

        Raises: UnknownOfferError, OutOfMemoryError.
        """
        tensors = {name: as_picture(pixels) for name, pixels in pictures.items()}
        for image in plan_job(job_id, request, self._loaded.pipelines, tensors).images:
            self._loaded.engine.add(image)

    @one_line()
    def step(self) -> Sequence[tuple[str, int, bytes]] | None:
        """Take a step; return job, index and pixels [H, W, 3] of each finished image, or None if no image is left.

        Raises: the error of a failed row; OutOfMemoryError.
        """
        report = self._loaded.engine.step()
        if report is None:
            return None
        for error in report.failed.values():
            raise error
        self.steps += len(report.moved)
        self.device_seconds += report.seconds
        return [
            (each.request.job_id, each.request.index, each.pixels.permute(1, 2, 0).contiguous().numpy().tobytes())
            for each in report.finished
        ]

    def png(self, request: ResolvedRequest, index: int, pixels: bytes) -> bytes:
        """The PNG that a worker with the same numerics stores for an image, from the pixels that `step` returned."""
        text = describe(request, index, self._loaded.pipelines[request.model], self.numerics_of(request.model))
        return encode(as_picture(pixels), text)


def as_picture(pixels: bytes) -> torch.Tensor:
    """Convert the bytes of a square [H, H, 3] to a picture [3, H, H], uint8."""
    size = math.isqrt(len(pixels) // 3)
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(size, size, 3).permute(2, 0, 1).contiguous()


@one_line()
def pipeline_of(settings: Settings, model: str) -> PipelineInfo:
    """A pipeline of the weights folder as a worker would announce it; no weights are read. Raises: LoadingError."""
    (plan,) = choose([model], settings.weights)
    return offer(select([model], [outline_plan(plan)])[model])


def devices(wanted: str) -> list[str]:
    """The devices that a setting selects on this machine; auto: every CUDA device, or the CPU."""
    if wanted != "auto":
        return [wanted]
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
