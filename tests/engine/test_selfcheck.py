"""The self-check is silent about the demo stack, and names what is wrong with wrong settings of it."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from bench.selfcheck import changed, heads_of, other_order, predicting_x0, scaled, swapped_halves
from diffusion.process import DiffusionProcess, MeanType
from engine.diffusion_process import process_of
from engine.selfcheck import check_network, check_stack
from models.networks.attention import AttentionBlock
from models.networks.config import DiffusionConfig
from models.stack import DiffusionNetwork, Stack, load_stack

DEMO = Path("weights/demo")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo() -> Stack:
    return load_stack(DEMO)


@pytest.fixture(scope="module")
def process(demo: Stack) -> DiffusionProcess:
    return process_of(demo.base)


def test_demo_stack_raises_no_doubt(demo: Stack) -> None:
    assert check_stack(demo) == []


def test_wrong_attention_order_is_named(demo: Stack, process: DiffusionProcess) -> None:
    (line,) = check_network(changed(demo.base.network, other_order), process)
    assert line.startswith("it finds noise better with legacy attention order: 0.")


def test_wrong_head_count_is_named(demo: Stack, process: DiffusionProcess) -> None:
    (line,) = check_network(changed(demo.base.network, heads_of(10**6)), process)
    assert line.startswith("it finds noise better with 32 channels a head: 0.")


def test_network_that_predicts_x0_is_named(demo: Stack, process: DiffusionProcess) -> None:
    lines = check_network(predicting_x0(demo.base.network, process), process)
    assert any("with predict_xstart" in line for line in lines)


def test_network_that_predicts_x0_raises_no_doubt_where_its_stack_says_so(
    demo: Stack, process: DiffusionProcess
) -> None:
    stated_x0 = dataclasses.replace(process, mean_type=MeanType.START_X)
    assert check_network(predicting_x0(demo.base.network, process), stated_x0) == []
    (line,) = check_network(demo.base.network, stated_x0)
    assert line.startswith("it finds noise better with eps in place of predict_xstart: 0.")


def test_rescaled_timesteps_are_distinguished_from_plain_ones(demo: Stack) -> None:
    longer = DiffusionNetwork(demo.base.network, DiffusionConfig("cosine", 4000, rescale_timesteps=True), "")
    assert check_network(longer.network, process_of(longer)) == []
    plain = dataclasses.replace(process_of(longer), rescale_timesteps=False)
    assert any("timesteps times 0.25" in line for line in check_network(longer.network, plain))


def test_swapped_halves_of_the_modulation_are_found(demo: Stack, process: DiffusionProcess) -> None:
    assert check_network(changed(demo.base.network, swapped_halves), process)


def test_timesteps_of_another_length_are_named(demo: Stack, process: DiffusionProcess) -> None:
    lines = check_network(demo.base.network, scaled(process, 0.25))
    assert any("timesteps times 4" in line for line in lines)


def test_check_leaves_the_network_as_it_was(demo: Stack, process: DiffusionProcess) -> None:
    network = copy.deepcopy(demo.base.network)
    before = [(each.num_heads, each.new_order) for each in network.modules() if isinstance(each, AttentionBlock)]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    check_network(network, process)
    after = [(each.num_heads, each.new_order) for each in network.modules() if isinstance(each, AttentionBlock)]
    assert before == after
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_check_needs_room_for_one_row_at_a_time(demo: Stack, process: DiffusionProcess) -> None:
    network, rows = copy.deepcopy(demo.base.network), set[int]()
    network.register_forward_pre_hook(lambda _, inputs: rows.add(len(inputs[0])))
    check_network(network, process)
    assert rows == {1}


def test_shipped_networks_that_predict_x0_raise_no_doubt() -> None:
    """Images with black backgrounds only, which are unlike the probe's smooth pictures."""
    assert check_stack(load_stack(Path("weights/fashion"))) == []
