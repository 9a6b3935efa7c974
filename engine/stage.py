"""One network of a pipeline and everything a batched step of it needs."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion.guidance import classifier_log_probabilities, guidance_gradient
from diffusion.noise import Draw, normals
from diffusion.pixels import from_uint8
from diffusion.process import Process
from diffusion.tables import SamplerTable, take_step
from diffusion.transfer import upload
from engine.compiling import Compiler, refuse_wrong_code
from engine.errors import NoClassifierError
from engine.guide import Guide
from engine.lanes import Lanes, Rows, compute_rows
from engine.row_shapes import agreeing_shapes, candidates_for
from engine.sampler_tables import build_table
from engine.shape_probes import STEPS, layer_shapes, trajectory_states
from engine.step_inputs import drawn_noise, guide_inputs, network_inputs, uploaded
from engine.threads import torch_threads
from engine.trajectory import FromLatent, FromPicture, ImageRequest, StagePlan, Trajectory
from models.networks import native_norm
from models.networks.classifier import NoisyClassifier
from models.networks.convolution import can_pack, pack_weights
from models.networks.fusing import fuse_norms, fused_by
from models.networks.precision import DTYPES, hold_weights
from models.networks.unet import SuperResUNet, UNet
from vocabulary.precisions import Precision
from vocabulary.sampling import Direction

Probe = Callable[[Sequence[Trajectory], Sequence[int]], Tensor]
"""Computes a network for the states with these indices: [N, ...]."""

TABLES_KEPT = 256
LARGE = 256 * 2**20  # bytes of weights in float32 from which one row of a network keeps several threads busy


class Stage:
    """A diffusion network, its process and, if it is guided, its guide.

    number: the stage's place in the order of stages, a part of the key of its noise. The networks are converted to the
    precision in place: half precision rounds the weights of their convolutions. With a compiler, network and guide run
    compiled, at fewer shapes, each of which takes time in warm_up.

    On a CPU the lanes compute parts of a step, one thread per part. A large network uses all threads for each row
    instead, so that a single image does not wait for one thread.
    """

    def __init__(
        self,
        name: str,
        number: int,
        network: UNet,
        process: Process,
        guide: Guide | None = None,
        *,
        precision: Precision = "fp32",
        compiler: Compiler | None = None,
        lanes: Lanes | None = None,
    ) -> None:
        self.name, self.number, self.precision = name, number, precision
        self.network, self.guide = network, guide
        self.device = next(network.parameters()).device
        self.lanes = lanes or Lanes()
        weights = sum(each.nbytes for each in network.parameters())
        self._is_wide = self.device.type == "cpu" and weights > LARGE
        self._packs = can_pack(self.device, DTYPES[precision])
        # packed convolutions always return channels-last maps
        layout = torch.contiguous_format if precision == "fp32" and not self._packs else torch.channels_last
        for _, module in self._modules():
            hold_weights(module, precision, layout)
        self._network: Callable[..., Tensor] = network
        self._log_probabilities = None if guide is None else guide.log_probabilities
        self._compiler = compiler
        self.process = process
        size = network.config.image_size
        self.shape = (3, size, size)
        self.network_shapes: tuple[int, ...] = ()
        self.guide_shapes: tuple[int, ...] = ()
        self.table = lru_cache(TABLES_KEPT)(partial(build_table, process))

    @property
    def mode(self) -> str:
        """A text on how the networks are run, as far as it may change rounding."""
        threads = [f"{self.lanes.count} threads a row"] if self._is_wide else []
        fused = [f"norms of the {part} by {by}" for part, module in self._modules() if (by := fused_by(module))]
        native = ["compiled norms"] if self._has_native_norms else []
        compiled = [] if self._compiler is None else [f"compiled by {self._compiler.version}"]
        return ", ".join(["packed" if self._packs else "eager", *native, *fused, *compiled, *threads])

    @property
    def _has_native_norms(self) -> bool:
        return self.device.type == "cpu" and native_norm.is_of(DTYPES[self.precision])

    @property
    def _keeps_kernels(self) -> bool:
        """Return whether compiled code calls the convolutions and norms of eager networks."""
        return self._packs and self._has_native_norms and not self._is_wide

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Row counts to which each part (network, guide) is padded, ascending; empty without a guide."""
        return {"network": self.network_shapes, "guide": self.guide_shapes}

    def give_up(self, rows: int) -> None:
        """Take fewer than this many rows in a step from now on, if there is a smaller shape."""
        self.network_shapes = tuple(each for each in self.network_shapes if each < rows) or self.network_shapes[:1]

    def drop_shapes(self, part: str, shapes: Sequence[int]) -> None:
        """Stop padding a part (network or guide) to these row counts; if none is left, use single rows."""
        left = tuple(each for each in self.row_shapes[part] if each not in shapes) or (1,)
        if part == "network":
            self.network_shapes = left
        else:
            self.guide_shapes = left

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield "network", self.network
        if self.guide is not None and self.guide.module is not None:
            yield "guide", self.guide.module

    @torch.no_grad()
    def warm_up(self, max_rows: int) -> None:
        """Find the row shapes that agree bit for bit; call this before the first step.

        Before that, norms are fused on a GPU, and weights are packed for their kernels on a CPU, if supported. The
        networks cannot be trained after this. Raises: WrongCodeError if they are compiled.
        """
        if self._packs:
            rows = 1 if self._is_wide else max_rows
            pack_weights(self.network, rows, partial(self._rehearse_part, self.probe_network))
            if self.guide is not None and isinstance(self.guide.module, NoisyClassifier):
                run = partial(self._rehearse_part, self.probe_guide)
                pack_weights(self.guide.module, rows, run, with_gradient=True)
        if self.device.type == "cuda" and self._compiler is None:
            self.fuse_norms(max_rows)
        if self._compiler is not None:
            self._compile(self._compiler)
        if self._is_wide:  # each row is computed alone, so there is nothing to compare
            self.network_shapes, self.guide_shapes = (1,), () if self.guide is None else (1,)
            probes = {"network": self.probe_network} | ({} if self.guide is None else {"guide": self.probe_guide})
            for part, probe in probes.items():
                self._rehearse_part(probe)
                if self._compiler is not None:
                    self._refuse_wrong_code(part, probe, [self.rehearsal()], [0])
            return
        lanes, self.lanes = self.lanes, Lanes()  # one part at a time, because compiling is not thread-safe
        candidates = candidates_for(self.device, max_rows, evenly=not self._has_native_norms)
        states = self._states(candidates)
        self.network_shapes = self._agreeing("network", self.probe_network, states, candidates)
        if self.guide is not None:
            self.guide_shapes = self._agreeing("guide", self.probe_guide, states, candidates)
        self.lanes = lanes

    def _compile(self, compiler: Compiler) -> None:
        """Have the networks compiled at their next call, from their packed weights."""
        self._network = compiler.compile(self.network)
        if self.guide is not None and isinstance(self.guide.module, NoisyClassifier):
            # without its softmax: with few classes, a vector of a compiled loop would span several rows,
            # and a row's last digits would depend on its place in the batch
            self._log_probabilities = classifier_log_probabilities(compiler.compile(self.guide.module))

    def _states(self, candidates: Sequence[int]) -> Sequence[Trajectory]:
        """States of real trajectories for comparing the shapes, one for each row of the largest."""
        shapes = tuple(candidates)
        if self._compiler is not None:
            # the others may not need compiling
            shapes = tuple(self._candidates_to_compile(self._compiler, "network", candidates))[-1:]
            for part, _ in self._modules():
                self._announce(part, shapes[-1])
        self.network_shapes, self.guide_shapes = shapes, () if self.guide is None else shapes
        return trajectory_states(self, candidates[-1])

    def _agreeing(
        self, part: str, probe: Probe, states: Sequence[Trajectory], candidates: Sequence[int]
    ) -> tuple[int, ...]:
        module = dict(self._modules()).get(part)
        if self._compiler is not None:
            candidates = self._candidates_to_compile(self._compiler, part, candidates)
        if module is not None and (self._compiler is None or self._keeps_kernels):
            run = partial(self._rehearse_part, probe)
            with self._eagerly():
                candidates = layer_shapes(module, run, candidates, with_gradient=part == "guide")
        if self._compiler is not None:  # before shapes are compared, because NaN does not even equal itself
            self._refuse_wrong_code(part, probe, states, range(candidates[-1]))
        # as many windows of one row as a trajectory has steps, to cover all timesteps and scales
        shapes = agreeing_shapes(partial(probe, states), candidates, windows=STEPS)
        if self._compiler is not None:
            self._compiler.note(f"{self.name} {part}", shapes)
        return shapes

    def _candidates_to_compile(self, compiler: Compiler, part: str, candidates: Sequence[int]) -> Sequence[int]:
        return compiler.candidates_of(f"{self.name} {part}", candidates, opaque=self._keeps_kernels)

    def _refuse_wrong_code(self, part: str, probe: Probe, states: Sequence[Trajectory], rows: Sequence[int]) -> None:
        """Compare a compiled part with its eager form. Raises: WrongCodeError."""
        assert self._compiler is not None
        found = probe(states, rows)
        with self._eagerly():
            expected = probe(states, rows)
        refuse_wrong_code(f"{self.name} {part}", self._compiler.version, found, expected, math.prod(self.shape))

    @contextmanager
    def _eagerly(self) -> Iterator[None]:
        """Run the networks as they are, not compiled."""
        compiled = self._network, self._log_probabilities
        self._network = self.network
        self._log_probabilities = None if self.guide is None else self.guide.log_probabilities
        try:
            yield
        finally:
            self._network, self._log_probabilities = compiled

    def _rehearse_part(self, probe: Probe) -> Tensor:
        return probe([self.rehearsal()], [0])

    @torch.no_grad()
    def fuse_norms(self, max_rows: int) -> None:
        """Fuse the norms of each network whose kernels agree with the eager form; otherwise warn with the reason."""
        for part, module in self._modules():
            probe = self.probe_network if part == "network" else self.probe_guide
            states = [self.rehearsal() for _ in range(min(2, max_rows))]
            if reason := fuse_norms(module, partial(probe, states, range(len(states)))):
                warnings.warn(
                    f"the norms of {self.name}'s {part} are not fused: {reason}", RuntimeWarning, stacklevel=2
                )

    def probe_network(self, states: Sequence[Trajectory], rows: Sequence[int]) -> Tensor:
        self._announce("network", len(rows))
        with self._threads():
            return self._predict(*network_inputs([states[row] for row in rows], self.device))

    def probe_guide(self, states: Sequence[Trajectory], rows: Sequence[int]) -> Tensor:
        """Gradients and scores, because the last digit of a score may be lost in a gradient."""
        self._announce("guide", len(rows))
        batch = [states[row] for row in rows]
        x, timesteps, *_ = network_inputs(batch, self.device)
        with self._threads():
            gradient = self._gradient(x, timesteps, *self._guide_inputs(batch))
            return torch.cat([gradient.flatten(1), self._scores(x, timesteps).float()], dim=1)

    def _announce(self, part: str, rows: int) -> None:
        if self._compiler is not None and self._network is not self.network:
            self._compiler.on_shape(f"{self.name} {part}", rows)

    def rehearse(self, rows: int) -> None:
        """Take a step of so many rows, guided if there is a classifier, and discard the result."""
        self.step([self.rehearsal() for _ in range(rows)])

    def rehearsal(self) -> Trajectory:
        plan = StagePlan(self.name, "ddpm", 2)
        guided = self.guide is not None
        request = ImageRequest("", 0, 0, (plan,), 0, ((0, 1.0),) if guided else (), float(guided))
        table = self.table(plan)
        enlarges = isinstance(self.network, SuperResUNet)
        low_res = torch.zeros(self.shape, device=self.device)[:, ::2, ::2] if enlarges else None
        return Trajectory(request, table, self.starting_noise(0, 0), low_res)

    def starting_noise(self, seed: int, index: int) -> Tensor:
        """x_T of an image: [3, H, W]."""
        return normals([Draw(seed, index, self.number, 0)], self.shape, self.device)[0]

    def enlarge(self, request: ImageRequest, plan: StagePlan, table: SamplerTable, low_res: Tensor) -> Tensor:
        """The start of an upsampler, x_t [3, H, W], for the small image [3, h, w].

        It is noise, as published. At a strength below 1 it is the bilinearly enlarged image, noised to the timestep of
        the first step taken. A lightly trained upsampler keeps its input's colours only in that way.
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
                if isinstance(self.network, SuperResUNet):
                    return self.enlarge(request, plan, table, x0), x0
                return (x0 if plan.direction is Direction.ENCODE else self._noised(x0, table, noise)), None
        return noise, None

    @torch.no_grad()
    def classify(self, pixels: Tensor) -> Tensor:
        """p(y | x) of the guide for clean images [N, 3, H, W], uint8: [N, K].

        Raises: NoClassifierError.
        """
        if self.guide is None:
            raise NoClassifierError
        x = from_uint8(upload(pixels, self.device))
        timesteps = torch.zeros(len(x), device=self.device)
        ((scores, self.guide_shapes),) = self._compute(Rows(self._scores, self.guide_shapes, (x, timesteps)))
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
        x, *others = network_inputs(batch, self.device)
        asked = [Rows(self._predict, self.network_shapes, (x, *others))]
        guided = [place for place, each in enumerate(batch) if each.guided]
        if guided:
            index = uploaded(guided, self.device)
            inputs = x[index], others[0][index], *self._guide_inputs([batch[place] for place in guided])
            asked.append(Rows(self._gradient, self.guide_shapes, inputs))
        (output, self.network_shapes), *rest = self._compute(*asked)
        guidance = None
        for gradient, self.guide_shapes in rest:
            guidance = torch.zeros_like(x).index_copy_(0, index, gradient)
        memory = torch.stack([each.memory for each in batch])
        taken = take_step(rows, x, output, guidance, drawn_noise(batch, rows, self.number, x), memory)
        # clones, because a view would keep its whole batch in memory while the image waits
        states = [tuple(each.clone() for each in state) for state in zip(*taken, strict=True)]
        return [each.moved(*state) for each, state in zip(batch, states, strict=True)]

    def _compute(self, *asked: Rows) -> list[tuple[Tensor, tuple[int, ...]]]:
        """The results and remaining shapes of rows for several networks. Raises: the errors of compute_rows."""
        if not self._is_wide:
            return compute_rows(self.lanes, asked)
        with self._threads():
            return compute_rows(Lanes(), asked)

    def _threads(self) -> AbstractContextManager[object]:
        """A context in which operations of a large network use all threads."""
        return torch_threads(self.lanes.count) if self._is_wide else nullcontext()

    def _guide_inputs(self, batch: Sequence[Trajectory]) -> tuple[Tensor, Tensor, Tensor]:
        assert self.guide is not None
        return guide_inputs(batch, self.guide.num_conditions, self.device)

    @torch.no_grad()  # a lane's thread has grad enabled
    def _predict(self, x: Tensor, timesteps: Tensor, labels: Tensor, low_res: Tensor) -> Tensor:
        class_labels = labels if self.network.config.num_classes is not None else None
        if isinstance(self.network, SuperResUNet):
            return self._network(x, timesteps, class_labels, low_res=low_res).float()
        return self._network(x, timesteps, class_labels).float()

    def _scores(self, x: Tensor, timesteps: Tensor) -> Tensor:
        assert self._log_probabilities is not None
        # a compiled forward pass has a gradient, as in a step; without one it would be compiled again
        with torch.set_grad_enabled(self._compiler is not None):
            return self._log_probabilities(x.requires_grad_(self._compiler is not None), timesteps).detach()

    def _gradient(
        self, x: Tensor, timesteps: Tensor, targets: Tensor, scales: Tensor, entropy_scaled: Tensor
    ) -> Tensor:
        assert self._log_probabilities is not None
        # fused attention sums gradients in an order that varies between runs on a GPU
        attention = nullcontext() if self.device.type == "cpu" else sdpa_kernel(SDPBackend.MATH)
        with attention:
            return guidance_gradient(self._log_probabilities, x, timesteps, targets, scales, entropy_scaled).float()
