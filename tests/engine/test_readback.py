"""A step waits for the device at its end alone.

Steps run on torch's meta device, whose tensors have no values, so reading one back raises. Copies from the host are
watched here, because on that device a copy that waits looks like any other.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.engine import Engine
from engine.guide import Guide
from engine.stage import Stage
from engine.stage_networks import StageNetworks
from engine.trajectory import FromPicture, Guidance, ImageRequest, StagePlan, StagePlans, Trajectory
from models.networks.classifier import NoisyClassifier
from models.networks.unet import build_unet
from tests.engine.bench import MAX_ROWS, Bench, reports
from vocabulary.sampling import SAMPLERS, Thresholding

BASE, UPSAMPLE = "tiny/base", "tiny/upsample"
SHAPES = (1, 2, MAX_ROWS)
aten = torch.ops.aten


class WaitingError(AssertionError):
    """A copy from the host to the device is waited for."""


class Numbers(TorchFunctionMode):
    """Raises: WaitingError for Python's numbers that torch makes tensors of the meta device from."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and result.is_meta and not isinstance(args[0], Tensor):
            raise WaitingError("torch.tensor(..., device=...)")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list):
            raise WaitingError("a list as index")
        return result


class Copies(TorchDispatchMode):
    """Counts the host's tensors that go to the meta device, and those that come from there without being waited for.

    Every value that comes from there counts as true. Raises: WaitingError for a copy that would be waited for.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.sent = self.fetched = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        from_host = any(not each.is_meta and each.dim() > 0 for each in tensors)  # of no dimension: a number
        if from_host and any(each.is_meta for each in tensors):
            raise WaitingError(f"{func} of the device's and the host's tensors")
        if func is aten._to_copy.default and not from_host and kwargs.get("device") == torch.device("cpu"):
            if not kwargs.get("non_blocking"):
                raise WaitingError(func)
            self.fetched += 1
            return torch.ones(args[0].shape, dtype=args[0].dtype)
        result = func(*args, **kwargs)
        if func is aten._to_copy.default and from_host and result.is_meta:
            self.sent += 1
            if not kwargs.get("non_blocking"):
                raise WaitingError(func)
        return result


@pytest.fixture(scope="module")
def stages(bench: Bench) -> dict[str, Stage]:
    return {key: on_meta(stage) for key, stage in bench.stages.items()}


def on_meta(stage: Stage) -> Stage:
    guide = None
    if stage.networks.guide is not None:
        assert isinstance(stage.networks.guide.module, NoisyClassifier)
        guide = Guide.of_classifier(
            NoisyClassifier(stage.networks.guide.module.config).to("meta").eval().requires_grad_(False)
        )
    network = build_unet(stage.networks.network.config).to("meta").eval().requires_grad_(False)
    moved = Stage(stage.number, StageNetworks(stage.name, network, guide), stage.process)
    moved.row_shapes = {"network": SHAPES, "guide": SHAPES if guide else ()}
    moved.rehearse(1)  # torch imports what meta tensors need with the first
    return moved


def enter(stage: Stage, request: ImageRequest) -> Trajectory:
    plan = next(plan for plan in request.plans if plan.stage.endswith(stage.name))
    table = stage.table(plan)
    low_res = torch.zeros(3, 8, 8, device="meta") if stage.name == "upsample" else None
    stage_index = request.plans.index(plan)
    return Trajectory(request, table, torch.zeros(stage.shape, device="meta"), low_res, stage_index)


def take_steps(stage: Stage, requests: Sequence[ImageRequest], steps: int) -> int:
    """Step a batch, and count what was sent."""
    copies = Copies()
    with Numbers(), copies:
        batch = [enter(stage, request) for request in requests]
        for _ in range(steps):
            batch = stage.step(batch)
    assert all(each.row == steps and each.x.is_meta for each in batch)
    assert not copies.fetched
    return copies.sent


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scales", [(0.0,), (2.0,), (2.0, 0.0, 5.0)], ids=str)
def test_step_of_the_base_waits_for_nothing(
    bench: Bench, stages: dict[str, Stage], sampler: str, scales: tuple[float, ...]
) -> None:
    requests = [
        replace(
            bench.image(index=i, sampler=sampler, steps=2, scale=scale, eta=float(sampler == "ddim")),
            entropy_scaled=i > 0,
        )
        for i, scale in enumerate(scales)
    ]
    assert take_steps(stages[BASE], requests, 2) > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_step_of_the_upsampler_waits_for_nothing(bench: Bench, stages: dict[str, Stage], sampler: str) -> None:
    requests = [bench.image(index=i, sampler=sampler, upsample=2) for i in range(3)]
    assert take_steps(stages[UPSAMPLE], requests, 2) > 0


@pytest.mark.parametrize("thresholding", ["clip", "dynamic", "none"])
def test_no_thresholding_waits(bench: Bench, stages: dict[str, Stage], thresholding: Thresholding) -> None:
    requests = [bench.image(), bench.image(index=1, thresholding=thresholding, scale=2.0)]
    assert take_steps(stages[BASE], requests, 2) > 0


@pytest.mark.slow
def test_no_step_of_the_engine_waits_for_what_it_begins(bench: Bench, stages: dict[str, Stage]) -> None:
    """From an image's start to its pixels; without the end of each step, which is waited for."""
    engine, copies = Engine(stages, MAX_ROWS), Copies()
    picture = FromPicture(torch.zeros(3, 8, 8, dtype=torch.uint8))
    enlarged = StagePlan("upsample", "ddim", 3, strength=0.7)
    with Numbers(), copies:
        engine.add(replace(bench.image("plain", steps=2, upsample=2, scale=2.0, sampler="heun"), wants_previews=True))
        engine.add(replace(bench.image("variation", steps=3), start=picture))
        engine.add(
            bench.conditional.image("enlarged", 0, 7, Guidance(0, 0.0), StagePlans(upsample=enlarged), start=picture)
        )
        seen = reports(engine)
    finished = [each for report in seen for each in report.finished]
    assert sorted(each.request.job_id for each in finished) == ["enlarged", "plain", "variation"]
    assert not any(each.pixels.is_meta for each in finished)
    previews = sum(len(report.previews) for report in seen)
    assert previews == 6, "as many as an image of 2 and 2 steps of Heun has evaluations"
    assert copies.fetched == previews + 4 + 3, "whether each is finite at a stage's end, and the pixels of the last"


class Kernels(TorchFunctionMode):
    """Keeps whether each attention, by whether it has a gradient, might run fused."""

    def __init__(self) -> None:
        super().__init__()
        self.fused: set[tuple[bool, bool]] = set()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            fused = torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()
            self.fused.add((args[0].requires_grad, fused))
        return func(*args, **(kwargs or {}))


def test_attention_is_fused_but_where_its_gradient_has_to_repeat_itself(bench: Bench, stages: dict[str, Stage]) -> None:
    kernels = Kernels()
    with kernels:
        stages[BASE].step([enter(stages[BASE], bench.image(scale=2.0))])
    assert kernels.fused == {(False, True), (True, False)}


def read_back(x: Tensor) -> None:
    bool((x > 0).any())


def select_by_mask(x: Tensor) -> None:
    x[x > 0].sum()


@pytest.mark.parametrize(
    ("wait", "refusal"),
    [
        (read_back, r"item\(\) cannot be called on meta tensors"),
        (select_by_mask, "register_meta function for torch.nonzero"),
    ],
)
def test_meta_device_answers_no_question(wait: Callable[[Tensor], None], refusal: str) -> None:
    with pytest.raises(RuntimeError, match=refusal):
        wait(torch.zeros(2, device="meta"))


def build_there(x: Tensor) -> None:
    torch.tensor([1.0, 2.0], device=x.device)


def move(x: Tensor) -> None:
    torch.tensor([1.0, 2.0]).to(x.device)


def mix(x: Tensor) -> None:
    x.index_fill_(0, torch.tensor([1]), 0.0)


def index_by_list(x: Tensor) -> None:
    x[[0, 1]] = 1.0


def fetch(x: Tensor) -> None:
    x.cpu()


@pytest.mark.parametrize("wait", [build_there, move, mix, index_by_list, fetch])
def test_watch_sees_each_copy_that_waits(wait: Callable[[Tensor], None]) -> None:
    x = torch.zeros(2, device="meta")
    with Numbers(), Copies(), pytest.raises(WaitingError):
        wait(x)
