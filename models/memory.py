"""Estimates the device memory of serving before anything is loaded: weights, a step, and the images in flight.

All estimates are for float32. Weights are loaded in float32 in every precision; half precision then halves most of them
and the maps of a step. Packing weights for the kernels of a CPU replaces them.
"""

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.checkpoints.network_file import blank_network
from models.networks.classifier import NoisyClassifier
from models.networks.config import ClassifierConfig, UNetConfig
from models.networks.unet import SuperResUNet, UNet
from models.stack_plan import StackPlan

NetworkConfig = UNetConfig | ClassifierConfig

BATCHES_IN_FLIGHT = 8  # most batches of images in a worker; only some of the images move in a step
STATES_KEPT = BATCHES_IN_FLIGHT + 1  # batches of states; a step that is launched ahead also keeps the states before it
MAPS_KEPT = 3  # of an image between two steps: x, pred_x0 and a solver's memory


class PeakMeter(TorchDispatchMode):
    """Measures the peak size, in bytes, of the tensors that are made inside the block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.live: int = 0
        self.peak: int = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for each in tree_leaves(results):
            if isinstance(each, Tensor):
                self._note(each.untyped_storage())
        return results

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        address, size = storage._cdata, storage.nbytes()
        self._known.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


def parameter_bytes(config: NetworkConfig) -> int:
    """Size of a network's weights in float32."""
    return sum(each.numel() * each.element_size() for each in blank_network(config).parameters())


def serving_bytes(config: NetworkConfig) -> int:
    """Upper bound of the size of a network's weights while it serves; a classifier also keeps them for its gradient."""
    size = parameter_bytes(config)
    return 2 * size if isinstance(config, ClassifierConfig) else size


def row_bytes(config: NetworkConfig) -> int:
    """Peak memory of one row of a step without the weights, in float32, including a classifier's gradient."""
    network = blank_network(config).requires_grad_(False)
    x = blank_row(config)
    with PeakMeter() as meter:
        if isinstance(network, NoisyClassifier):
            with torch.enable_grad():
                noisy = x.requires_grad_()
                torch.autograd.grad(forward(network, noisy).log_softmax(-1).sum(), noisy)
        else:
            forward(network, x)
    peak: int = meter.peak
    return peak


def blank_row(config: NetworkConfig) -> Tensor:
    """One image of a network's size on the meta device: [1, 3, H, W]."""
    return torch.empty(1, 3, config.image_size, config.image_size, device="meta")


def forward(network: nn.Module, x: Tensor) -> Tensor:
    """The output of a blank network for one image and blank values of its other inputs."""
    inputs: list[Tensor | None] = [x, torch.empty(1, device="meta")]
    extra = {"low_res": x} if isinstance(network, SuperResUNet) else {}
    if isinstance(network, UNet):
        conditional = network.config.num_classes is not None
        inputs.append(torch.empty(1, dtype=torch.long, device="meta") if conditional else None)
    output: Tensor = network(*inputs, **extra)
    return output


def state_bytes(config: NetworkConfig) -> int:
    """Size of the state of an image between two steps, in float32."""
    maps = MAPS_KEPT * config.image_size**2
    low_res = (config.image_size // 2) ** 2 if isinstance(config, UNetConfig) and config.super_res else 0
    return 4 * 3 * (maps + low_res)


def bytes_per_row(configs: Iterable[NetworkConfig]) -> int:
    """Memory per row of the largest batch: its share of a step and of the waiting images."""
    known = set(configs)
    networks, guides = ([each for each in known if isinstance(each, kind)] for kind in (UNetConfig, ClassifierConfig))
    # a network and a guide may be computed at the same time
    step = sum(max(map(row_bytes, each), default=0) for each in (networks, guides))
    return step + STATES_KEPT * max(map(state_bytes, known))


def surely_fits(config: NetworkConfig, rows: int, free: int) -> bool:
    """Return whether a network fits by a wide bound; then the exact estimate, with its slow imports, is skipped."""
    depth, widest = config.num_res_blocks + 2, config.image_size**2 * config.width(0)
    return 4 * (30 * depth * widest * rows) + rows * STATES_KEPT * state_bytes(config) < free


@dataclass(frozen=True)
class Need:
    """Memory of a set of networks on a device, in bytes: all weights, and each row of the largest batch."""

    weights: int
    row: int

    @classmethod
    def of(cls, plans: Iterable[StackPlan]) -> "Need":
        files = {file.path: file.config for plan in plans for file in plan.files}
        return cls(
            sum(serving_bytes(config) for config in files.values()),
            bytes_per_row(files.values()),
        )

    def rows_in(self, free: int) -> int:
        """The number of rows for which a step fits; 0 or negative if not even one fits."""
        return (free - self.weights) // self.row


@dataclass(frozen=True)
class Shortage:
    """Stacks do not fit in the free memory of a device.

    rows_that_fit: rows of a step if all of them are loaded; 0 if none fits. fitting: rows of a step by pipeline, for
    each that would fit by itself.
    """

    needed_bytes: int
    free_bytes: int
    max_rows: int
    rows_that_fit: int
    fitting: Mapping[str, int]


def shortage(plans: Sequence[StackPlan], max_rows: int, free: int) -> Shortage | None:
    """Return what stacks lack in this many free bytes of memory; None if they fit."""
    configs = [file.config for plan in plans for file in plan.files]
    weights = sum(file.path.stat().st_size for plan in plans for file in plan.files)
    if all(surely_fits(config, max_rows, free - 2 * weights) for config in configs):
        return None
    need = Need.of(plans)
    rows = need.rows_in(free)
    if rows >= max_rows:
        return None
    fitting = dict[str, int]()
    if rows < 1:
        alone = {name: Need.of([plan.only([name])]).rows_in(free) for plan in plans for name in plan.pipelines}
        fitting = {name: min(rows, max_rows) for name, rows in alone.items() if rows >= 1}
    return Shortage(need.weights + max_rows * need.row, free, max_rows, max(0, rows), fitting)


def bytes_of_compiled(configs: Sequence[NetworkConfig], max_rows: int) -> int:
    """Return the memory that networks of these configurations take in addition if they are compiled.

    Compiled code keeps its buffers until the end of a pass; eager networks free each map after its last use.
    """
    return max_rows * bytes_per_row(configs)


def free_bytes(device: torch.device) -> int | None:
    """Free memory on a device, in bytes; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    available = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([*available, *_left_in_cgroup()], default=None)


def _left_in_cgroup() -> Iterator[int]:
    # a container's limit; the file contains "max" if there is none
    folder = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        yield int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
