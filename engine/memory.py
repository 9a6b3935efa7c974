"""How much device memory serving takes, reckoned before anything is loaded: weights, a step, the images in flight.

Everything counts in float32. Weights are loaded in it whatever the precision; half precision holds most of them, and
what is computed, in half the size then. Packing weights for the kernels of a CPU replaces them.
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
from models.plan import StackPlan

NetworkConfig = UNetConfig | ClassifierConfig

BATCHES_IN_FLIGHT = 8  # that a worker takes at most: few of the images move in a step, the others wait for theirs
STATES_KEPT = BATCHES_IN_FLIGHT + 1  # in batches: of those that move in a step begun ahead, also where they stood
MAPS_KEPT = 3  # of an image between two steps: x, the prediction of the clean image, what a solver remembers


class PeakMeter(TorchDispatchMode):
    """The most bytes that the tensors made inside were holding at one time."""

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
    """Size of a network's weights at most while it serves: a classifier's are kept for its gradient as well."""
    size = parameter_bytes(config)
    return 2 * size if isinstance(config, ClassifierConfig) else size


def row_bytes(config: NetworkConfig) -> int:
    """Peak size of what one row of a step needs beside the weights, in float32: a classifier's gradient included."""
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
    """What a blank network gives for one image, and for blanks of whatever else it takes."""
    inputs: list[Tensor | None] = [x, torch.empty(1, device="meta")]
    extra = {"low_res": x} if isinstance(network, SuperResUNet) else {}
    if isinstance(network, UNet):
        conditional = network.config.num_classes is not None
        inputs.append(torch.empty(1, dtype=torch.long, device="meta") if conditional else None)
    output: Tensor = network(*inputs, **extra)
    return output


def state_bytes(config: NetworkConfig) -> int:
    """Size of what an image keeps between two steps, in float32."""
    maps = MAPS_KEPT * config.image_size**2
    low_res = (config.image_size // 2) ** 2 if isinstance(config, UNetConfig) and config.super_res else 0
    return 4 * 3 * (maps + low_res)


def bytes_per_row(configs: Iterable[NetworkConfig]) -> int:
    """What each row of the largest batch takes: its share of a step, and of the images that wait."""
    known = set(configs)
    networks, guides = ([each for each in known if isinstance(each, kind)] for kind in (UNetConfig, ClassifierConfig))
    # a network and a guide may be computed at the same time
    step = sum(max(map(row_bytes, each), default=0) for each in (networks, guides))
    return step + STATES_KEPT * max(map(state_bytes, known))


def surely_fits(config: NetworkConfig, rows: int, free: int) -> bool:
    """Whether a network fits by a bound so wide that the exact reckoning, whose imports take seconds, is not needed."""
    depth, widest = config.num_res_blocks + 2, config.image_size**2 * config.width(0)
    return 4 * (30 * depth * widest * rows) + rows * STATES_KEPT * state_bytes(config) < free


@dataclass(frozen=True)
class Need:
    """What a set of networks takes on a device, bytes: weights together, and each row of the largest batch."""

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
        """How many rows a step may have; negative or 0 where not even one fits."""
        return (free - self.weights) // self.row


def shortage(plans: Sequence[StackPlan], max_rows: int, free: int) -> str | None:
    """Why the stacks do not fit in so many free bytes and what would; None where they fit."""
    configs = [file.config for plan in plans for file in plan.files]
    weights = sum(file.path.stat().st_size for plan in plans for file in plan.files)
    if all(surely_fits(config, max_rows, free - 2 * weights) for config in configs):
        return None
    need = Need.of(plans)
    if need.rows_in(free) >= max_rows:
        return None
    wanted = f"need {gib(need.weights + max_rows * need.row)} at ADM_MAX_ROWS={max_rows}, {gib(free)} are free"
    if need.rows_in(free) >= 1:
        return f"{wanted}; ADM_MAX_ROWS={need.rows_in(free)} would fit"
    alone = {name: Need.of([plan.only([name])]).rows_in(free) for plan in plans for name in plan.pipelines}
    fitting = [f"{name} with ADM_MAX_ROWS={min(rows, max_rows)}" for name, rows in alone.items() if rows >= 1]
    return f"{wanted}; " + (f"alone would fit: {', '.join(fitting)}" if fitting else "none of them fits alone")


def shortage_when_compiled(configs: Sequence[NetworkConfig], shapes: int, max_rows: int, free: int) -> str | None:
    """Why networks that are loaded, of these configurations, cannot be compiled for so many row shapes as well.

    The diffusion networks' weights are then packed once for each shape, beside those that are there.
    """
    packed = shapes * sum(parameter_bytes(config) for config in configs if isinstance(config, UNetConfig))
    needed = packed + max_rows * bytes_per_row(configs)
    if needed <= free:
        return None
    return f"compiled networks need {gib(needed)} more at ADM_MAX_ROWS={max_rows}, {gib(free)} are free"


def gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    available = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([*available, *_left_in_cgroup()], default=None)


def _left_in_cgroup() -> Iterator[int]:
    # a container's limit; the file says "max" where there is none
    folder = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        yield int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
