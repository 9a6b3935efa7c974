"""A worker without its queue: requests in, pixels out, in this process; `adm sample --local` runs one a device."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from engine.loading import choose
from engine.steps import NotFiniteError
from jobs.contract.errors import AdmError, SettingsError
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import ResolvedRequest
from jobs.settings import Settings
from models.checkpoints.network_file import WeightsError
from models.stack import outline_plan
from worker.main import choose_device, load, use_host
from worker.offers import offer, select
from worker.plans import plan_job
from worker.png import describe, encode


class OutOfMemoryError(AdmError):
    """The device's memory does not suffice, however small the batch."""


REFUSALS = (WeightsError, SettingsError, NotFiniteError, OutOfMemoryError)
"""What a user can mend, or at least needs no traceback of."""


@contextlib.contextmanager
def told_shortly() -> Iterator[None]:
    """torch tells of memory at a length that only who allocates can use."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            "its memory does not suffice, even for the smallest batch; what is finished is kept"
        ) from error


class Alone:
    """Pipelines on one device, loaded as a worker of the same settings loads them: same numerics, same pixels."""

    @told_shortly()
    def __init__(self, settings: Settings, device: str) -> None:
        use_host(settings)
        self._held = load(settings, choose_device(device), device)
        self.steps = 0  # of the engine, summed over images and stages
        self.device_seconds = 0.0

    @property
    def numerics(self) -> str:
        return self._held.info.numerics

    @property
    def max_rows(self) -> int:
        return self._held.engine.max_rows

    @property
    def rows_in_flight(self) -> int:
        return self._held.engine.rows_in_flight

    @told_shortly()
    def add(self, job_id: str, request: ResolvedRequest, pictures: Mapping[str, bytes]) -> None:
        """Let the images of a request join the next step; pictures are the pixels [H, H, 3], uint8, of those it names.

        Raises: UnknownOfferError, OutOfMemoryError.
        """
        tensors = {name: as_picture(pixels) for name, pixels in pictures.items()}
        for image in plan_job(job_id, request, self._held.pipelines, tensors).images:
            self._held.engine.add(image)

    @told_shortly()
    def step(self) -> Sequence[tuple[str, int, bytes]] | None:
        """Take a step; the job, index and pixels [H, W, 3] of the images that it finished. None: nothing is left.

        Raises: what a row's step raised, and OutOfMemoryError.
        """
        report = self._held.engine.step()
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
        """The file that a worker of the same numerics stores for an image, from the pixels that `step` returned."""
        text = describe(request, index, self._held.pipelines[request.model], self.numerics)
        return encode(as_picture(pixels), text)


def as_picture(pixels: bytes) -> torch.Tensor:
    """Pixels of a square as a picture [3, H, H], uint8."""
    size = math.isqrt(len(pixels) // 3)
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(size, size, 3).permute(2, 0, 1).contiguous()


def pipeline_of(settings: Settings, model: str) -> PipelineInfo:
    """A pipeline of the weights folder as a worker would announce it; no weights are read. Raises: WeightsError."""
    (plan,) = choose([model], settings.weights)
    return offer(select([model], [outline_plan(plan)])[model])


def devices(wanted: str) -> list[str]:
    """What a setting of the device comes to on this machine; auto: every CUDA device, or the CPU."""
    if wanted != "auto":
        return [wanted]
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
