"""One network of a pipeline and everything a batched step of it needs."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion.guidance import classifier_log_probabilities, guidance_gradient
from diffusion.noise import Draw, normals
from diffusion.pixels import from_uint8
from diffusion.process import Process
from diffusion.solvers import ENCODE
from diffusion.tables import COLUMNS, SamplerTable, take_step
from diffusion.transfer import upload
from engine.compiling import Compiler
from engine.guide import Guide
from engine.lanes import Lanes, Rows, compute_rows
from engine.probing import layer_shapes, trajectory_states
from engine.sampling import UnknownOfferError, build_table
from engine.shapes import agreeing_shapes, candidates_for
from engine.threads import torch_threads
from engine.trajectory import FromLatent, FromPicture, ImageRequest, StagePlan, Trajectory
from models.networks import native_norm
from models.networks.classifier import NoisyClassifier
from models.networks.convolution import can_pack, pack_weights
from models.networks.fusing import fuse_norms, fused_by
from models.networks.precision import DTYPES, Precision, hold_weights
from models.networks.unet import SuperResUNet, UNet

NOISE_COLUMNS = [COLUMNS.index("noise"), COLUMNS.index("noise_std")]
Probe = Callable[[Sequence[Trajectory], Sequence[int]], Tensor]
"""What a network makes of those of some states that have these numbers."""

TABLES_KEPT = 256
LARGE = 256 * 2**20  # bytes of a network's weights in float32, from which one row keeps several threads busy


class Stage:
    """A diffusion network, its process and, where it is guided, its guide.

    number is the stage's place in the order of stages, part of the address of its noise. The networks are this
    precision's from here on: in half precision the weights of their convolutions are rounded. With a compiler, network
    and guide run compiled: at fewer shapes, each of which takes its time in warm_up.

    On a CPU the lanes compute parts of a step, each on one thread. A large network has all threads for one row instead,
    so that a lone image does not wait for a single thread.
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
        self._packs = compiler is None and can_pack(self.device, DTYPES[precision])
        # packed convolutions leave channels-last maps in any case
        layout = torch.contiguous_format if precision == "fp32" and not self._packs else torch.channels_last
        for _, module in self._modules():
            hold_weights(module, precision, layout)
        self._network: Callable[..., Tensor] = network
        self._log_probabilities = None if guide is None else guide.log_probabilities
        self._compiler = compiler
        if compiler is not None:
            self._network = compiler.compile(network, frozen=True)
            if guide is not None and isinstance(guide.module, NoisyClassifier):
                # without its softmax: a vector of a compiled loop over few classes would hold parts of several rows,
                # and a row's last digits would tell its place in the batch
                self._log_probabilities = classifier_log_probabilities(compiler.compile(guide.module))
        self.process = process
        size = network.config.image_size
        self.shape = (3, size, size)
        self.network_shapes: tuple[int, ...] = ()
        self.guide_shapes: tuple[int, ...] = ()
        self.table = lru_cache(TABLES_KEPT)(partial(build_table, process))

    @property
    def mode(self) -> str:
        """How the networks are run, as far as it may change how they round."""
        threads = [f"{self.lanes.count} threads a row"] if self._is_wide else []
        if self._compiler is not None:
            return ", ".join([f"compiled by {self._compiler.version}", *threads])
        fused = [f"norms of the {part} by {by}" for part, module in self._modules() if (by := fused_by(module))]
        native = ["compiled norms"] if self.device.type == "cpu" and native_norm.is_of(DTYPES[self.precision]) else []
        return ", ".join(["packed" if self._packs else "eager", *native, *fused, *threads])

    @property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """Row counts that each part is padded to, ascending: the network, and the guide, none where there is none."""
        return {"network": self.network_shapes, "guide": self.guide_shapes}

    def give_up(self, rows: int) -> None:
        """Take fewer rows than so many in a step from here on, as far as there is a shape for fewer."""
        self.network_shapes = tuple(each for each in self.network_shapes if each < rows) or self.network_shapes[:1]

    def drop_shapes(self, part: str, shapes: Sequence[int]) -> None:
        """Pad a part, network or guide, to these row counts no more; a single row is left where all are dropped."""
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
        """Find the row shapes that agree bit for bit; has to be called before the first step.

        On a GPU the norms are fused before, where that goes. On a CPU the weights are packed for their kernels, where
        that goes; the networks train no more.
        """
        if self._packs:
            rows = 1 if self._is_wide else max_rows
            pack_weights(self.network, rows, partial(self._rehearse_part, self.probe_network))
            if self.guide is not None and isinstance(self.guide.module, NoisyClassifier):
                run = partial(self._rehearse_part, self.probe_guide)
                pack_weights(self.guide.module, rows, run, with_gradient=True)
        if self.device.type == "cuda" and self._compiler is None:
            self.fuse_norms(max_rows)
        if self._is_wide:  # each row is computed as if it were the only one: there is nothing to compare
            self.network_shapes, self.guide_shapes = (1,), () if self.guide is None else (1,)
            self._rehearse_part(self.probe_network)  # compiles, where that is asked for
            if self.guide is not None:
                self._rehearse_part(self.probe_guide)
            return
        lanes, self.lanes = self.lanes, Lanes()  # one part at a time: compiling is not for several threads
        evenly = self._compiler is not None or not native_norm.is_of(DTYPES[self.precision])
        candidates = candidates_for(self.device, max_rows, evenly=evenly)
        states = self._states(candidates)
        self.network_shapes = self._agreeing("network", self.probe_network, states, candidates)
        if self.guide is not None:
            self.guide_shapes = self._agreeing("guide", self.probe_guide, states, candidates)
        self.lanes = lanes

    def _states(self, candidates: Sequence[int]) -> Sequence[Trajectory]:
        """States of real trajectories to compare the shapes on, as many as the largest has rows."""
        shapes = tuple(candidates)
        if self._compiler is not None:
            # the others may not be worth compiling
            shapes = tuple(self._compiler.candidates_of(f"{self.name} network", candidates))[-1:]
            for part, _ in self._modules():
                self._announce(part, shapes[-1])
        self.network_shapes, self.guide_shapes = shapes, () if self.guide is None else shapes
        return trajectory_states(self, candidates[-1])

    def _agreeing(
        self, part: str, probe: Probe, states: Sequence[Trajectory], candidates: Sequence[int]
    ) -> tuple[int, ...]:
        name, module = f"{self.name} {part}", dict(self._modules()).get(part)
        if self._compiler is not None:
            candidates = self._compiler.candidates_of(name, candidates)
        elif module is not None:
            run = partial(self._rehearse_part, probe)
            candidates = layer_shapes(module, run, candidates, with_gradient=part == "guide")
        shapes = agreeing_shapes(partial(probe, states), candidates)
        if self._compiler is not None:
            self._compiler.note(name, shapes)
        return shapes

    def _rehearse_part(self, probe: Probe) -> Tensor:
        return probe([self.rehearsal()], [0])

    @torch.no_grad()
    def fuse_norms(self, max_rows: int) -> None:
        """Fuse the norms of each network whose kernels agree with the eager form; where not, a warning says why."""
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
            return self._predict(*self._inputs([states[row] for row in rows]))

    def probe_guide(self, states: Sequence[Trajectory], rows: Sequence[int]) -> Tensor:
        """Gradients and scores: a last digit of a score may be lost in a gradient."""
        self._announce("guide", len(rows))
        batch = [states[row] for row in rows]
        x, timesteps, *_ = self._inputs(batch)
        with self._threads():
            gradient = self._gradient(x, timesteps, *self._guidance_inputs(batch))
            return torch.cat([gradient.flatten(1), self._scores(x, timesteps).float()], dim=1)

    def _announce(self, part: str, rows: int) -> None:
        if self._compiler is not None:
            self._compiler.on_shape(f"{self.name} {part}", rows)

    def rehearse(self, rows: int) -> None:
        """Take a step of so many rows, all guided where there is a classifier, and forget it."""
        self.step([self.rehearsal() for _ in range(rows)])

    def rehearsal(self) -> Trajectory:
        plan = StagePlan(self.name, "ddpm", 2)
        guided = self.guide is not None
        request = ImageRequest("", 0, 0, (plan,), 0, ((0, 1.0),) if guided else (), float(guided))
        table = self.table(plan.sampler, plan.num_steps, plan.eta)
        enlarges = isinstance(self.network, SuperResUNet)
        low_res = torch.zeros(self.shape, device=self.device)[:, ::2, ::2] if enlarges else None
        return Trajectory(request, table, self.starting_noise(0, 0), low_res)

    def starting_noise(self, seed: int, index: int) -> Tensor:
        """x_T of an image: [3, H, W]."""
        return normals([Draw(seed, index, self.number, 0)], self.shape, self.device)[0]

    def enlarge(self, request: ImageRequest, plan: StagePlan, table: SamplerTable, low_res: Tensor) -> Tensor:
        """What an upsampler starts from, given the small image [3, h, w]: x_t [3, H, W].

        Noise, as published; at a strength below 1 the bilinearly enlarged image, noised as far as the first step taken
        removes it again. An upsampler that is lightly trained knows its input's colours only there.
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
        """What an image's first stage starts from: x_t [3, H, W], and the low-resolution image of an upsampler."""
        noise = self.starting_noise(request.seed, request.drawn_index)
        match request.start:
            case FromLatent(x):
                return upload(x, self.device), None
            case FromPicture(pixels):
                x0 = from_uint8(upload(pixels, self.device))
                if isinstance(self.network, SuperResUNet):
                    return self.enlarge(request, plan, table, x0), x0
                return (x0 if plan.sampler == ENCODE else self._noised(x0, table, noise)), None
        return noise, None

    @torch.no_grad()
    def classify(self, pixels: Tensor) -> Tensor:
        """p(y | x) of the guide for clean images [N, 3, H, W], uint8: [N, K].

        Raises: UnknownOfferError where there is no guide.
        """
        if self.guide is None:
            raise UnknownOfferError("there is no classifier to ask")
        x = from_uint8(upload(pixels, self.device))
        timesteps = torch.zeros(len(x), device=self.device)
        ((scores, self.guide_shapes),) = self._compute(Rows(self._scores, self.guide_shapes, (x, timesteps)))
        return scores.float().softmax(dim=1)

    @torch.no_grad()
    def step(self, batch: Sequence[Trajectory]) -> list[Trajectory]:
        """Take the next row of every trajectory's table, and tell where they stand then.

        A device that works by itself need not have come to it yet: nothing here waits for it.
        Where the device's memory does not suffice for the networks, the rows are computed in parts, and the shapes that
        were too large are given up. Raises: torch.OutOfMemoryError where the smallest is, and where it does not suffice
        for what is beside the networks.
        """
        rows = torch.stack([each.table.rows[each.row] for each in batch]).float()  # on the host
        x, *others = self._inputs(batch)
        asked = [Rows(self._predict, self.network_shapes, (x, *others))]
        guided = [place for place, each in enumerate(batch) if each.guided]
        if guided:
            index = self._upload(guided)
            inputs = x[index], others[0][index], *self._guidance_inputs([batch[place] for place in guided])
            asked.append(Rows(self._gradient, self.guide_shapes, inputs))
        (output, self.network_shapes), *rest = self._compute(*asked)
        guidance = None
        for gradient, self.guide_shapes in rest:
            guidance = torch.zeros_like(x).index_copy_(0, index, gradient)
        memory = torch.stack([each.memory for each in batch])
        taken = take_step(rows, x, output, guidance, self._noise(batch, rows), memory)
        # a view would keep its whole batch in memory for as long as the image waits
        states = [tuple(each.clone() for each in state) for state in zip(*taken, strict=True)]
        return [each.moved(*state) for each, state in zip(batch, states, strict=True)]

    def _upload(self, values: Sequence[float]) -> Tensor:
        return upload(torch.tensor(values), self.device)

    def _compute(self, *asked: Rows) -> list[tuple[Tensor, tuple[int, ...]]]:
        """Results and shapes left of rows for several networks. Raises: as compute_rows."""
        if not self._is_wide:
            return compute_rows(self.lanes, asked)
        with self._threads():
            return compute_rows(Lanes(), asked)

    def _threads(self) -> AbstractContextManager[object]:
        """What a large network takes of the threads: all."""
        return torch_threads(self.lanes.count) if self._is_wide else nullcontext()

    def _inputs(self, batch: Sequence[Trajectory]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the network takes: x_t, timesteps, labels, low_res."""
        x = torch.stack([each.x for each in batch])
        timesteps = self._upload([each.timestep for each in batch])
        labels = self._upload([each.request.network_label or 0 for each in batch])
        low_res = [each.low_res for each in batch if each.low_res is not None]
        return x, timesteps, labels, torch.stack(low_res) if low_res else x

    def _guidance_inputs(self, batch: Sequence[Trajectory]) -> tuple[Tensor, Tensor, Tensor]:
        """What guides these rows: targets [N, K], scales and whether entropy scales them, [N]."""
        assert self.guide is not None
        targets = torch.zeros(len(batch), self.guide.num_conditions)
        for target, each in zip(targets, batch, strict=True):
            for condition, weight in each.request.guidance_target:
                target[condition] = weight
        scales = self._upload([each.request.guidance_scale for each in batch])
        return upload(targets, self.device), scales, self._upload([each.request.entropy_scaled for each in batch])

    @torch.no_grad()  # a lane's thread has grad enabled
    def _predict(self, x: Tensor, timesteps: Tensor, labels: Tensor, low_res: Tensor) -> Tensor:
        class_labels = labels if self.network.config.num_classes is not None else None
        if isinstance(self.network, SuperResUNet):
            return self._network(x, timesteps, class_labels, low_res=low_res).float()
        return self._network(x, timesteps, class_labels).float()

    def _scores(self, x: Tensor, timesteps: Tensor) -> Tensor:
        assert self._log_probabilities is not None
        # compiled, the forward of a step is taken, which has a gradient: without one it would be compiled once more
        with torch.set_grad_enabled(self._compiler is not None):
            return self._log_probabilities(x.requires_grad_(self._compiler is not None), timesteps).detach()

    def _gradient(
        self, x: Tensor, timesteps: Tensor, targets: Tensor, scales: Tensor, entropy_scaled: Tensor
    ) -> Tensor:
        assert self._log_probabilities is not None
        # fused attention adds its gradients up in whatever order a GPU's programs end: no two runs would agree
        attention = nullcontext() if self.device.type == "cpu" else sdpa_kernel(SDPBackend.MATH)
        with attention:
            return guidance_gradient(self._log_probabilities, x, timesteps, targets, scales, entropy_scaled).float()

    def _noise(self, batch: Sequence[Trajectory], rows: Tensor) -> Tensor:
        noise = torch.zeros(len(batch), *self.shape, device=self.device)
        drawn = [i for i, row in enumerate(rows[:, NOISE_COLUMNS].any(dim=1).tolist()) if row]
        if not drawn:
            return noise
        moved = [batch[i] for i in drawn]
        draws = [Draw(each.request.seed, each.request.drawn_index, self.number, each.row + 1) for each in moved]
        return noise.index_copy_(0, self._upload(drawn), normals(draws, self.shape, self.device))
