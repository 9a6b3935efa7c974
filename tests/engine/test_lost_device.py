"""What the engine does when the device is gone, which no job is to blame for."""

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
