"""One image on its way through the stages."""

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.grids import TimeGrid
from diffusion.solvers import ENCODE, num_evaluations
from diffusion.tables import SamplerTable, Thresholding
from engine.scheduler import Priority


@dataclass(frozen=True)
class StagePlan:
    """How an image passes one stage.

    strength is the share of the steps that is taken, the last ones: an image that starts from a picture is noised only
    as far as they remove it again.
    """

    stage: str
    sampler: str
    num_steps: int
    eta: float = 0.0
    time_grid: TimeGrid | None = None  # the sampler's own
    thresholding: Thresholding = "clip"
    strength: float = 1.0
    eps_scale: float = 1.0  # factor on the predicted noise

    @property
    def num_evaluations(self) -> int:
        """Steps that the engine takes, one an evaluation of the network: some samplers need two for one of theirs."""
        return num_evaluations(self.sampler, steps_taken(self.num_steps, self.strength))


def steps_taken(num_steps: int, strength: float) -> int:
    """How many of a sampler's steps a strength takes; one at least."""
    return max(1, math.ceil(round(strength * num_steps, 9)))


@dataclass(frozen=True, eq=False)
class FromPicture:
    """Pixels [3, H, W], uint8: of the size of the first stage, or, where that is an upsampler, of its input."""

    pixels: Tensor


@dataclass(frozen=True, eq=False)
class FromLatent:
    """x_t [3, H, W] of the first stage's first step, as an encoding left it."""

    x: Tensor


@dataclass(frozen=True)
class ImageRequest:
    """All that determines an image's pixels, whose it is and how it is to be treated.

    network_label is the row of the label embedding, None for a network without one. guidance_target steers the
    classifier: classes and their weights, one class of weight 1 as a rule, none for no guidance. The two differ where
    an unconditional model is guided. guidance_interval is in original timesteps, both ends included;
    None for all of them. Images of one seed and noise_index draw the same noise; None for the index itself.
    """

    job_id: str
    index: int
    seed: int
    plans: tuple[StagePlan, ...]
    network_label: int | None = None
    guidance_target: tuple[tuple[int, float], ...] = ()
    guidance_scale: float = 0.0
    guidance_interval: tuple[int, int] | None = None
    entropy_scaled: bool = False
    start: FromPicture | FromLatent | None = None  # noise
    noise_index: int | None = None
    wants_previews: bool = False
    priority: Priority = "normal"

    @property
    def drawn_index(self) -> int:
        """The image index in the address of its noise."""
        return self.index if self.noise_index is None else self.noise_index

    @property
    def num_evaluations(self) -> int:
        """Network evaluations over all stages."""
        return sum(plan.num_evaluations for plan in self.plans)


@dataclass(frozen=True, eq=False)
class ImageState:
    """Where an image stands between two steps: with its request and the same numerics, all that its pixels follow from.

    Shapes as in Trajectory, on any device. Taken from an engine it is not a copy.
    """

    stage_index: int
    row: int  # of the step to be taken next
    x: Tensor
    memory: Tensor
    low_res: Tensor | None


@dataclass
class Trajectory:
    """An image within a stage, as it stands between two steps: its own state, place and coefficients."""

    request: ImageRequest
    table: SamplerTable
    x: Tensor  # (C, H, W), float32
    low_res: Tensor | None = None  # (C, h, w), what the stage before handed over
    stage_index: int = 0
    row: int = 0
    pred_x0: Tensor | None = field(default=None, repr=False)  # (C, H, W), after the last step taken
    memory: Tensor = field(init=False, repr=False)  # (C, H, W), what a solver of second order keeps for its next step

    def __post_init__(self) -> None:
        self.memory = torch.zeros_like(self.x)

    def moved(self, x: Tensor, pred_x0: Tensor, memory: Tensor) -> "Trajectory":
        """What a step makes of it; itself it stays where it is."""
        after = copy.copy(self)
        after.x, after.pred_x0, after.memory, after.row = x, pred_x0, memory, self.row + 1
        return after

    @property
    def state(self) -> ImageState:
        return ImageState(self.stage_index, self.row, self.x, self.memory, self.low_res)

    @property
    def key(self) -> tuple[str, int]:
        """Names the image: its job, and its place there."""
        return self.request.job_id, self.request.index

    @property
    def plan(self) -> StagePlan:
        return self.request.plans[self.stage_index]

    @property
    def timestep(self) -> float:
        """Of the step to be taken next, as the networks see it."""
        return float(self.table.timesteps[self.row])

    @property
    def guided(self) -> bool:
        """Whether the step to be taken next needs the classifier; only the first stage is, and no encoding is."""
        request = self.request
        if self.plan.stage != request.plans[0].stage or self.plan.sampler == ENCODE:
            return False
        if not request.guidance_target or request.guidance_scale == 0:
            return False
        if request.guidance_interval is None:
            return True
        low, high = request.guidance_interval
        return low <= int(self.table.original[self.row]) <= high
