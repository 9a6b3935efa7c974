"""Rows of `bench.paper` that train, on a small scale: equal budgets and recipes, resumed runs, correct intervals."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.paper.trainings.gan import BATCH, GanRun
from bench.paper.trainings.points import METRICS, with_intervals
from bench.paper.trainings.variants import BASELINE, BUDGET, PARTS, VARIANTS, num_steps, run_config, step_flops
from datasets.sdf import SHAPES
from models.networks.config import UNetConfig


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_takes_the_budget_to_within_half_a_step_of_each_part(name: str) -> None:
    variant = VARIANTS[name]
    assert abs(num_steps(variant) * step_flops(variant) - BUDGET) <= PARTS * step_flops(variant) / 2


@pytest.mark.parametrize("name", VARIANTS)
def test_a_network_has_the_architecture_that_its_variant_states(name: str) -> None:
    variant = VARIANTS[name]
    network = run_config(variant, 0).network_config(len(SHAPES))
    assert isinstance(network, UNetConfig)
    attended = tuple(network.image_size // factor for factor in network.attention_resolutions)
    kept = replace(
        BASELINE, **{field: getattr(network, field) for field in vars(BASELINE) if field != "attention_sizes"}
    )
    assert replace(kept, attention_sizes=attended) == variant


def test_runs_differ_in_nothing_but_network_seed_and_steps() -> None:
    def rest(name: str, seed: int) -> object:
        config = run_config(VARIANTS[name], seed).model_dump(exclude={"network", "seed", "saving"})
        return config | {"optimiser": config["optimiser"] | {"steps": None}}

    assert all(rest(name, 1) == rest("baseline", 0) for name in VARIANTS)


def test_a_gan_resumed_from_its_state_equals_an_uninterrupted_one() -> None:
    whole, first, second = (GanRun(3, renders=BATCH) for _ in range(3))
    whole.train(4)
    first.train(2)
    second.load(first.state())
    second.train(4)
    assert torch.equal(second.sample(100, 1.0), whole.sample(100, 1.0))
    assert not torch.equal(first.sample(100, 1.0), whole.sample(100, 1.0))


def test_truncated_latents_make_other_images() -> None:
    run = GanRun(3, renders=BATCH)
    assert not torch.equal(run.sample(100, 0.5), run.sample(100, float("inf")))


def seen(values: list[float]) -> dict[str, Any]:
    """A point with these values of every metric, by seed."""
    return {"by_seed": dict(zip(METRICS, [values] * len(METRICS), strict=True))}


def test_intervals_are_of_the_spread_of_all_points() -> None:
    steady, uneven = (seen(values) for values in ([1.0, 1.0], [2.0, 4.0]))
    one, other = (point["metrics"]["fid"] for point in with_intervals([steady, uneven], paired=False))
    assert (one["value"], other["value"]) == (1.0, 3.0)
    # pooled variance (0 + 2) / 2 with two degrees of freedom; each mean is of two values; t = 4.303
    assert one["high"] - one["value"] == other["high"] - other["value"] == pytest.approx(4.303 / 2**0.5, abs=1e-3)


def test_a_shift_of_all_points_by_their_seed_is_left_out_of_paired_intervals() -> None:
    points = [seen([base, base + 7.0]) for base in (1.0, 2.0, 5.0)]
    for point, mean in zip(with_intervals(points, paired=True), (4.5, 5.5, 8.5), strict=True):
        assert point["metrics"]["fid"] == {"value": mean, "low": mean, "high": mean, "bias": None}
