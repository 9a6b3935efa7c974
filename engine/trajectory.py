"""One image on its way through the stages."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.tables import SamplerTable
from vocabulary.priorities import Priority
from vocabulary.sampling import Direction, Thresholding, TimeGrid, num_evaluations, steps_taken


@dataclass(frozen=True)
class StagePlan:
    """The settings of an image in one stage.

    strength: the share of the steps that is taken, counted from the end. A picture that an image starts from is noised
    to the timestep of the first of these steps.
    """

    stage: str
    sampler: str
    num_steps: int
    eta: float = 0.0
    time_grid: TimeGrid | None = None  # None: the sampler's default
    thresholding: Thresholding = "clip"
    strength: float = 1.0
    eps_scale: float = 1.0  # factor on the predicted noise
    direction: Direction = Direction.DECODE

    @property
    def num_evaluations(self) -> int:
        """The engine's steps, one per evaluation of the network; some samplers need two for one of their own steps."""
        return num_evaluations(self.sampler, steps_taken(self.num_steps, self.strength), self.direction)


@dataclass(frozen=True)
class StagePlans:
    """The plans of the stages that an image passes: an encoding, the base, the upsampler, in this order."""

    base: StagePlan | None = None
    upsample: StagePlan | None = None
    encode: StagePlan | None = None

    @property
    def in_order(self) -> list[StagePlan]:
        return [plan for plan in (self.encode, self.base, self.upsample) if plan is not None]


@dataclass(frozen=True)
class Guidance:
    """The class of an image, and how strongly the classifier guides towards it.

    class_weights guide in place of class_label. interval: original timesteps, both ends included; None for all.
    """

    class_label: int | None = None
    scale: float = 0.0
    interval: tuple[int, int] | None = None
    class_weights: Mapping[int, float] | None = None
    entropy_scaled: bool = False

    @property
    def target(self) -> tuple[tuple[int, float], ...]:
        """The classes that guide, with their weights."""
        if self.class_weights is not None:
            return tuple(sorted(self.class_weights.items()))
        return () if self.class_label is None else ((self.class_label, 1.0),)


@dataclass(frozen=True, eq=False)
class FromPicture:
    """Pixels [3, H, W], uint8, of the first stage's size, or of its input's size if that stage is an upsampler."""

    pixels: Tensor


@dataclass(frozen=True, eq=False)
class FromLatent:
    """x_t [3, H, W] for the first step of the first stage, from an encoding."""

    x: Tensor


@dataclass(frozen=True)
class ImageRequest:
    """All that determines an image's pixels, and its job and priority.

    network_label: the row of the label embedding, None for a network without one. guidance_target: the classes and
    weights for the classifier, usually one class of weight 1; empty for no guidance. network_label and guidance_target
    differ if an unconditional model is guided. guidance_interval: original timesteps, both ends included; None for all.
    noise_index: images with the same seed and noise_index draw the same noise; None for the image's index.
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
    start: FromPicture | FromLatent | None = None  # None: noise
    noise_index: int | None = None
    wants_previews: bool = False
    priority: Priority = "normal"

    @property
    def drawn_index(self) -> int:
        """The image index in the key of its noise."""
        return self.index if self.noise_index is None else self.noise_index

    @property
    def num_evaluations(self) -> int:
        """Network evaluations over all stages."""
        return sum(plan.num_evaluations for plan in self.plans)


@dataclass(frozen=True, eq=False)
class ImageState:
    """The state of an image between two steps. With its request and the same numerics, it determines the pixels.

    Shapes are those of Trajectory, on any device. A state that an engine returns is not a copy.
    """

    stage_index: int
    row: int  # of the next step, in the sampler's table
    x: Tensor
    memory: Tensor
    low_res: Tensor | None


@dataclass
class Trajectory:
    """An image within a stage between two steps: its state, its place and its table of coefficients."""

    request: ImageRequest
    table: SamplerTable
    x: Tensor  # (C, H, W), float32
    low_res: Tensor | None = None  # (C, h, w), from the stage before
    stage_index: int = 0
    row: int = 0
    pred_x0: Tensor | None = field(default=None, repr=False)  # (C, H, W), after the last step taken
    memory: Tensor = field(init=False, repr=False)  # (C, H, W), kept by second-order solvers for their next step

    def __post_init__(self) -> None:
        self.memory = torch.zeros_like(self.x)

    def moved(self, x: Tensor, pred_x0: Tensor, memory: Tensor) -> "Trajectory":
        """The trajectory after a step; this one is not changed."""
        after = copy.copy(self)
        after.x, after.pred_x0, after.memory, after.row = x, pred_x0, memory, self.row + 1
        return after

    @property
    def state(self) -> ImageState:
        return ImageState(self.stage_index, self.row, self.x, self.memory, self.low_res)

    @property
    def key(self) -> tuple[str, int]:
        """The image's job and its index there."""
        return self.request.job_id, self.request.index

    @property
    def plan(self) -> StagePlan:
        return self.request.plans[self.stage_index]

    @property
    def timestep(self) -> float:
        """The timestep of the next step, as the networks get it."""
        return float(self.table.timesteps[self.row])

    @property
    def guided(self) -> bool:
        """Return whether the next step needs the classifier: only in the first stage, and not while encoding."""
        request = self.request
        if self.plan.stage != request.plans[0].stage or self.plan.direction is Direction.ENCODE:
            return False
        if not request.guidance_target or request.guidance_scale == 0:
            return False
        if request.guidance_interval is None:
            return True
        low, high = request.guidance_interval
        return low <= int(self.table.original[self.row]) <= high
