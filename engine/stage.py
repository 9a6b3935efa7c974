"""One stage of a pipeline: the start of its images, and a batched step of them."""

from collections.abc import Sequence
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.noise import Draw, normals
from diffusion.pixels import from_uint8
from diffusion.process import DiffusionProcess
from diffusion.tables import SamplerTable, take_step
from diffusion.transfer import upload
from engine.errors import NoClassifierError
from engine.lanes import Rows
from engine.sampler_tables import build_table
from engine.stage_networks import StageNetworks
from engine.step_inputs import drawn_noise, network_inputs, uploaded
from engine.trajectory import FromLatent, FromPicture, ImageRequest, StagePlan, Trajectory
from models.networks.unet import SuperResUNet
from vocabulary.sampling import Direction

TABLES_KEPT = 256


class Stage:
    """The networks of a stage, their diffusion process, and the row shapes in use.

    number: the stage's place in the order of stages, a part of the key of its noise.
    row_shapes: row counts to which each part (network, guide) is padded, ascending; `engine.row_shapes` chooses them
    before the first step. Empty for a guide that does not exist.
    """

    def __init__(self, number: int, networks: StageNetworks, process: DiffusionProcess) -> None:
        self.name, self.number, self.networks, self.process = networks.name, number, networks, process
        self.device = networks.device
        size = networks.network.config.image_size
        self.shape = (3, size, size)
        self.row_shapes: dict[str, tuple[int, ...]] = {"network": (), "guide": ()}
        self._enlarges = isinstance(networks.network, SuperResUNet)
        self.table = lru_cache(TABLES_KEPT)(partial(build_table, process))

    def give_up(self, rows: int) -> None:
        """Take fewer than this many rows in a step from now on, if there is a smaller shape."""
        shapes = self.row_shapes["network"]
        self.row_shapes |= {"network": tuple(each for each in shapes if each < rows) or shapes[:1]}

    def drop_shapes(self, part: str, shapes: Sequence[int]) -> None:
        """Stop padding a part (network or guide) to these row counts; if none is left, use single rows."""
        self.row_shapes |= {part: tuple(each for each in self.row_shapes[part] if each not in shapes) or (1,)}

    def rehearse(self, rows: int) -> None:
        """Take a step of this many rows, guided if there is a guide, and discard the result."""
        self.step([self.rehearsal() for _ in range(rows)])

    def rehearsal(self) -> Trajectory:
        """A trajectory of noise of seed 0 at its first step, guided if there is a guide."""
        plan = StagePlan(self.name, "ddpm", 2)
        guided = self.networks.guide is not None
        request = ImageRequest("", 0, 0, (plan,), 0, ((0, 1.0),) if guided else (), float(guided))
        table = self.table(plan)
        low_res = torch.zeros(self.shape, device=self.device)[:, ::2, ::2] if self._enlarges else None
        return Trajectory(request, table, self.starting_noise(0, 0), low_res)

    def starting_noise(self, seed: int, index: int) -> Tensor:
        """x_T of an image: [3, H, W]."""
        return normals([Draw(seed, index, self.number, 0)], self.shape, self.device)[0]

    def enlarge(self, request: ImageRequest, plan: StagePlan, table: SamplerTable, low_res: Tensor) -> Tensor:
        """The first x_t [3, H, W] of an upsampler, for the small image [3, h, w].

        It is noise, as published. At a strength below 1 it is the bilinearly enlarged image, noised to the timestep of
        the first step taken; a lightly trained upsampler keeps its input's colours only in that way.
        """
        noise = self.starting_noise(request.seed, request.drawn_index)
        if plan.strength == 1:
            return noise
        enlarged = F.interpolate(low_res[None], self.shape[1:], mode="bilinear")
        return self._noised(enlarged[0], table, noise)

    def _noised(self, x0: Tensor, table: SamplerTable, noise: Tensor) -> Tensor:
        first = torch.tensor([int(table.original[0])])
        return self.process.q_sample(x0[None], first, noise[None])[0]

    def begin(self, request: ImageRequest, plan: StagePlan, table: SamplerTable) -> tuple[Tensor, Tensor | None]:
        """The start of an image's first stage: x_t [3, H, W], and an upsampler's low-resolution image."""
        noise = self.starting_noise(request.seed, request.drawn_index)
        match request.start:
            case FromLatent(x):
                return upload(x, self.device), None
            case FromPicture(pixels):
                x0 = from_uint8(upload(pixels, self.device))
                if self._enlarges:
                    return self.enlarge(request, plan, table, x0), x0
                return (x0 if plan.direction is Direction.ENCODE else self._noised(x0, table, noise)), None
        return noise, None

    @torch.no_grad()
    def classify(self, pixels: Tensor) -> Tensor:
        """p(y | x) of the guide for clean images [N, 3, H, W], uint8: [N, K].

        Raises: NoClassifierError.
        """
        if self.networks.guide is None:
            raise NoClassifierError
        x = from_uint8(upload(pixels, self.device))
        timesteps = torch.zeros(len(x), device=self.device)
        rows = Rows(self.networks.scores, self.row_shapes["guide"], (x, timesteps))
        ((scores, self.row_shapes["guide"]),) = self.networks.compute(rows)
        return scores.float().softmax(dim=1)

    @torch.no_grad()
    def step(self, batch: Sequence[Trajectory]) -> list[Trajectory]:
        """Launch the next step of every trajectory, a row of its table; return the trajectories after it, in order.

        On an asynchronous device nothing here waits for the results.
        If the device's memory does not suffice for the networks, the rows are computed in parts, and shapes that were
        too large are not used again.
        Raises: torch.OutOfMemoryError if the smallest shape is too large, or memory does not suffice for tensors
        outside the networks.
        """
        rows = torch.stack([each.table.rows[each.row] for each in batch]).float()  # on the host
        networks, shapes = self.networks, self.row_shapes
        x, timesteps, *others = network_inputs(batch, self.device)
        asked = [Rows(networks.predict, shapes["network"], (x, timesteps, *others))]
        guided = [place for place, each in enumerate(batch) if each.guided]
        if guided:
            index = uploaded(guided, self.device)
            inputs = x[index], timesteps[index], *networks.guide_inputs([batch[place] for place in guided])
            asked.append(Rows(networks.gradient, shapes["guide"], inputs))
        (output, shapes["network"]), *rest = networks.compute(*asked)
        guidance = None
        for gradient, shapes["guide"] in rest:
            guidance = torch.zeros_like(x).index_copy_(0, index, gradient)
        memory = torch.stack([each.memory for each in batch])
        taken = take_step(rows, x, output, guidance, drawn_noise(batch, rows, self.number, x), memory)
        # clones, because a view would keep its whole batch in memory while the image waits
        states = [tuple(each.clone() for each in state) for state in zip(*taken, strict=True)]
        return [each.moved(*state) for each, state in zip(batch, states, strict=True)]
