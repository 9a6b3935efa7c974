"""The engine after the loss of the device, which is no job's fault."""

import pytest
import torch
from torch import Tensor, nn

from tests.engine.bench import Bench


def test_lost_device_is_raised_and_not_blamed_on_the_jobs_of_the_batch(own_bench: Bench) -> None:
    def lose_device(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    own_bench.conditional.stack.base.network.register_forward_pre_hook(lose_device)
    engine = own_bench.engine()
    engine.add(own_bench.image("one"))
    engine.add(own_bench.image("other"))
    with pytest.raises(torch.AcceleratorError):
        engine.step()
    assert engine.rows_in_flight == 2


def test_device_that_is_lost_between_two_stages_is_raised_too(
    own_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_device(*_: object) -> Tensor:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(own_bench.stages["tiny/upsample"], "enlarge", lose_device)  # no CPU is ever lost
    engine = own_bench.engine()
    engine.add(own_bench.image(steps=1, upsample=1))
    with pytest.raises(torch.AcceleratorError):
        engine.step()
