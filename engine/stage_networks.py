"""The networks of a stage and how they are computed: precision, packed weights, fused norms, compiled code, threads."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion.guidance import classifier_log_probabilities, guidance_gradient
from engine.compiling import Compiler
from engine.guide import Guide
from engine.lanes import Lanes, Rows, compute_rows
from engine.step_inputs import guide_inputs, network_inputs
from engine.threads import torch_threads
from engine.trajectory import Trajectory
from models.networks import native_norm
from models.networks.classifier import NoisyClassifier
from models.networks.convolution import can_pack, pack_weights
from models.networks.fusing import fuse_norms, fused_by
from models.networks.precision import DTYPES, hold_weights
from models.networks.unet import SuperResUNet, UNet
from vocabulary.precisions import Precision

LARGE = 256 * 2**20  # bytes of weights in float32 from which one row of a network keeps several threads busy


class StageNetworks:
    """A diffusion network and, if it is guided, its guide, for inference on the network's device.

    name: the stage's, for messages. The networks are converted to the precision in place: half precision rounds the
    weights of their convolutions. With a compiler they run compiled once `prepare` was called.

    On a CPU the lanes compute parts of a step, one thread per part. A large network uses all threads for each row
    instead, so that a single image does not wait for one thread.

    one_lane_rows: up to this number of rows, one lane computes them all (worker.warmup measures it); more rows are
    divided among the lanes. Rows are equal bit for bit in either case.
    """

    def __init__(
        self,
        name: str,
        network: UNet,
        guide: Guide | None = None,
        *,
        precision: Precision = "fp32",
        compiler: Compiler | None = None,
        lanes: Lanes | None = None,
    ) -> None:
        self.name, self.network, self.guide = name, network, guide
        self.precision, self.compiler = precision, compiler
        self.device = next(network.parameters()).device
        self.lanes = lanes or Lanes()
        self.one_lane_rows = 0
        weights = sum(each.nbytes for each in network.parameters())
        self.is_wide = self.device.type == "cpu" and weights > LARGE
        self._packs = can_pack(self.device, DTYPES[precision])
        # packed convolutions always return channels-last maps
        layout = torch.contiguous_format if precision == "fp32" and not self._packs else torch.channels_last
        for module in self.modules.values():
            hold_weights(module, precision, layout)
        self._network: Callable[..., Tensor] = network
        self._log_probabilities = None if guide is None else guide.log_probabilities

    @property
    def parts(self) -> tuple[str, ...]:
        return ("network",) if self.guide is None else ("network", "guide")

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules of the parts; a guide may have none."""
        guide = None if self.guide is None else self.guide.module
        return {"network": self.network} | ({} if guide is None else {"guide": guide})

    @property
    def mode(self) -> str:
        """Describe how the networks run, as far as this may change rounding."""
        threads = [f"{self.lanes.count} threads a row"] if self.is_wide else []
        fused = [f"norms of the {part} by {by}" for part, module in self.modules.items() if (by := fused_by(module))]
        native = ["compiled norms"] if self.has_native_norms else []
        compiled = [] if self.compiler is None else [f"compiled by {self.compiler.version}"]
        return ", ".join(["packed" if self._packs else "eager", *native, *fused, *compiled, *threads])

    @property
    def has_native_norms(self) -> bool:
        return self.device.type == "cpu" and native_norm.supports(DTYPES[self.precision])

    @property
    def keeps_kernels(self) -> bool:
        """Return whether compiled code calls the convolutions and norms of eager networks."""
        return self._packs and self.has_native_norms and not self.is_wide

    @torch.no_grad()
    def prepare(self, max_rows: int, rehearsal: Trajectory) -> None:
        """Pack, fuse or compile the networks, as the device allows; call this before the first step.

        On a CPU, weights are packed for its kernels. On a GPU, norms are fused. A compiled network is compiled at its
        first call with each shape. The networks cannot be trained after this. rehearsal: a trajectory to run them on.
        """
        if self._packs:
            self._pack(1 if self.is_wide else max_rows, rehearsal)
        if self.device.type == "cuda" and self.compiler is None:
            self.fuse_norms(max_rows, rehearsal)
        if self.compiler is not None:
            self._compile(self.compiler)

    def _pack(self, rows: int, rehearsal: Trajectory) -> None:
        pack_weights(self.network, rows, partial(self.probe, "network", [rehearsal], [0]))
        if self.guide is not None and isinstance(self.guide.module, NoisyClassifier):
            run = partial(self.probe, "guide", [rehearsal], [0])
            pack_weights(self.guide.module, rows, run, with_gradient=True)

    @torch.no_grad()
    def fuse_norms(self, max_rows: int, rehearsal: Trajectory) -> None:
        """Fuse the norms of each network whose kernels agree with the eager form; otherwise warn with the reason."""
        rows = [0] * min(2, max_rows)
        for part, module in self.modules.items():
            if reason := fuse_norms(module, partial(self.probe, part, [rehearsal], rows)):
                warnings.warn(
                    f"the norms of {self.name}'s {part} are not fused: {reason}", RuntimeWarning, stacklevel=2
                )

    def _compile(self, compiler: Compiler) -> None:
        """Have the networks compiled at their next call, from their packed weights."""
        self._network = compiler.compile(self.network)
        if self.guide is not None and isinstance(self.guide.module, NoisyClassifier):
            # without its softmax: with few classes, a vector of a compiled loop would span several rows,
            # and a row's last digits would depend on its place in the batch
            self._log_probabilities = classifier_log_probabilities(compiler.compile(self.guide.module))

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """Run the networks as they are, not compiled."""
        compiled = self._network, self._log_probabilities
        self._network = self.network
        self._log_probabilities = None if self.guide is None else self.guide.log_probabilities
        try:
            yield
        finally:
            self._network, self._log_probabilities = compiled

    def probe(self, part: str, states: Sequence[Trajectory], rows: Sequence[int]) -> Tensor:
        """Compute a part (network or guide) for the states with these indices: [len(rows), ...].

        A guide's results are gradients and scores, because the last digit of a score may be lost in a gradient.
        """
        self.announce(part, len(rows))
        batch = [states[row] for row in rows]
        inputs = network_inputs(batch, self.device)
        with self._threads():
            if part == "network":
                return self.predict(*inputs)
            x, timesteps, *_ = inputs
            gradient = self.gradient(x, timesteps, *self.guide_inputs(batch))
            return torch.cat([gradient.flatten(1), self.scores(x, timesteps).float()], dim=1)

    def announce(self, part: str, rows: int) -> None:
        """Report to the compiler that compiled code of a part is about to run with this number of rows."""
        if self.compiler is not None and self._network is not self.network:
            self.compiler.on_shape(f"{self.name} {part}", rows)

    def compute(self, *asked: Rows) -> list[tuple[Tensor, tuple[int, ...]]]:
        """The results and remaining shapes of rows for several networks. Raises: the errors of compute_rows."""
        if not self.is_wide:
            return compute_rows(Lanes() if max(map(len, asked)) <= self.one_lane_rows else self.lanes, asked)
        with self._threads():
            return compute_rows(Lanes(), asked)

    def _threads(self) -> AbstractContextManager[object]:
        """A context in which operations of a large network use all threads."""
        return torch_threads(self.lanes.count) if self.is_wide else nullcontext()

    def guide_inputs(self, batch: Sequence[Trajectory]) -> tuple[Tensor, Tensor, Tensor]:
        assert self.guide is not None
        return guide_inputs(batch, self.guide.num_conditions, self.device)

    @torch.no_grad()  # a lane's thread has grad enabled
    def predict(self, x: Tensor, timesteps: Tensor, labels: Tensor, low_res: Tensor) -> Tensor:
        """The diffusion network's output [N, 3 or 6, H, W], float32, for the inputs of `network_inputs`."""
        class_labels = labels if self.network.config.num_classes is not None else None
        if isinstance(self.network, SuperResUNet):
            return self._network(x, timesteps, class_labels, low_res=low_res).float()
        return self._network(x, timesteps, class_labels).float()

    def scores(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """The guide's outputs [N, K], from which a softmax makes probabilities."""
        assert self._log_probabilities is not None
        # a compiled forward pass has a gradient, as in a step; without one it would be compiled again
        with torch.set_grad_enabled(self.compiler is not None):
            return self._log_probabilities(x.requires_grad_(self.compiler is not None), timesteps).detach()

    def gradient(self, x: Tensor, timesteps: Tensor, targets: Tensor, scales: Tensor, entropy_scaled: Tensor) -> Tensor:
        """The guide's scaled gradient [N, 3, H, W], float32, for x_t, timesteps and the inputs of `guide_inputs`."""
        assert self._log_probabilities is not None
        # fused attention sums gradients in an order that varies between runs on a GPU
        attention = nullcontext() if self.device.type == "cpu" else sdpa_kernel(SDPBackend.MATH)
        with attention:
            return guidance_gradient(self._log_probabilities, x, timesteps, targets, scales, entropy_scaled).float()
