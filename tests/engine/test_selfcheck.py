"""The self-check says nothing of the demo stack, and what is wrong of wrong ones."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from bench.selfcheck import changed, heads_of, other_order, predicting_x0, swapped_halves
from diffusion.schedule import Schedule
from engine.selfcheck import check_network, check_stack
from models.attention import AttentionBlock
from models.stack import Stack, load_stack

DEMO = Path("weights/demo")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo() -> Stack:
    return load_stack(DEMO)


@pytest.fixture(scope="module")
def schedule(demo: Stack) -> Schedule:
    return Schedule.named(demo.base.schedule, demo.base.num_timesteps)


def test_demo_stack_raises_no_doubt(demo: Stack) -> None:
    assert check_stack(demo) == []


def test_wrong_attention_order_is_named(demo: Stack, schedule: Schedule) -> None:
    (line,) = check_network(changed(demo.base.network, other_order), schedule)
    assert line.startswith("it finds noise better with legacy attention order: 0.")


def test_wrong_head_count_is_named(demo: Stack, schedule: Schedule) -> None:
    (line,) = check_network(changed(demo.base.network, heads_of(10**6)), schedule)
    assert line.startswith("it finds noise better with 32 channels a head: 0.")


def test_network_that_predicts_x0_is_named(demo: Stack, schedule: Schedule) -> None:
    lines = check_network(predicting_x0(demo.base.network, schedule), schedule)
    assert any("with predict_xstart" in line for line in lines)


def test_swapped_halves_of_the_modulation_are_found(demo: Stack, schedule: Schedule) -> None:
    assert check_network(changed(demo.base.network, swapped_halves), schedule)


def test_timesteps_of_another_length_are_named(demo: Stack, schedule: Schedule) -> None:
    told = dataclasses.replace(schedule, timestep_map=schedule.timestep_map * 0.25)
    lines = check_network(demo.base.network, told)
    assert any("timesteps times 4" in line for line in lines)


def test_check_leaves_the_network_as_it_was(demo: Stack, schedule: Schedule) -> None:
    network = copy.deepcopy(demo.base.network)
    before = [(each.num_heads, each.new_order) for each in network.modules() if isinstance(each, AttentionBlock)]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    check_network(network, schedule)
    after = [(each.num_heads, each.new_order) for each in network.modules() if isinstance(each, AttentionBlock)]
    assert before == after
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_check_needs_room_for_one_row_at_a_time(demo: Stack, schedule: Schedule) -> None:
    network, rows = copy.deepcopy(demo.base.network), set[int]()
    network.register_forward_pre_hook(lambda _, inputs: rows.add(len(inputs[0])))
    check_network(network, schedule)
    assert rows == {1}
