"""A kernel that starts to give wrong results is found by computing steps again, and is not used after that."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.audit import Audit, Difference
from engine.numerics import fingerprint
from tests.engine.bench import Bench, reports

BASE, UPSAMPLE = "tiny/base", "tiny/upsample"


def off_at(rows: int, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A kernel that is right except for batches of `rows` rows, where it is off by a relative 2^-20."""

    def computed(x: Tensor, *others: Any, **named: Any) -> Tensor:
        result = compute(x, *others, **named)
        return result * (1 + 2**-20) if len(x) == rows else result

    return computed


def serve(bench: Bench, audit: Audit, images: int = 3) -> None:
    engine = bench.engine()
    for index in range(images):
        engine.add(bench.image(f"{index}", sampler="ddpm", steps=3, scale=2.0, upsample=1, seed=index))
    for report in reports(engine):
        audit.note(report)


def audited(bench: Bench) -> Audit:
    return Audit(bench.stages, 1.0, Random(0))


@pytest.mark.slow
def test_sound_kernels_come_out_the_same(bench: Bench) -> None:
    audit = audited(bench)
    for _ in range(5):
        serve(bench, audit)
        assert audit.run() is None
    assert audit.compared == 5


@pytest.mark.parametrize("part", ["network", "guide"])
def test_wrong_kernel_is_found_and_its_row_shape_is_used_no_more(own_bench: Bench, part: str) -> None:
    stage, audit, before = own_bench.stages[BASE], audited(own_bench), fingerprint(own_bench.stages, "fp32")
    request = own_bench.image(sampler="ddpm", steps=3, scale=2.0)
    alone = own_bench.alone(request)
    # no public name replaces a kernel, and the real ones are right; this one is wrong in batches of four rows
    name = "_network" if part == "network" else "_log_probabilities"
    setattr(stage.networks, name, off_at(4, getattr(stage.networks, name)))
    differences: list[Difference] = []
    while not differences:  # which step is taken again is drawn by chance
        serve(own_bench, audit)
        differences = [each for each in [audit.run()] if each is not None]
    (difference,) = differences
    assert (difference.stage, difference.row_shape, difference.guilty) == (BASE, 4, {part: (4,)})
    assert stage.row_shapes[part] == (1, 2)
    assert fingerprint(own_bench.stages, "fp32") != before
    engine = own_bench.engine()
    for index in range(3):
        engine.add(own_bench.image(f"{index}", sampler="ddpm", steps=3, scale=2.0))
    finished = [each for report in reports(engine) for each in report.finished]
    assert all(torch.equal(each.pixels, alone) for each in finished)


def test_what_does_not_repeat_itself_is_reported_without_a_guilty_shape(own_bench: Bench) -> None:
    stage, audit = own_bench.stages[BASE], audited(own_bench)
    right = stage.networks._network  # replaced by a kernel that is wrong at three sizes; the real one is not
    stage.networks._network = off_at(1, off_at(2, off_at(4, right)))
    engine = own_bench.engine()
    engine.add(own_bench.image(sampler="ddpm", steps=2))
    for report in reports(engine):
        audit.note(report)
    stage.networks._network = right
    difference = audit.run()
    assert difference is not None
    assert difference.guilty == {}
    assert stage.row_shapes["network"] == (1, 2, 4)


def test_an_audit_takes_no_more_than_its_share(bench: Bench) -> None:
    audit, engine = Audit(bench.stages, 0.01, Random(0)), bench.engine()
    engine.add(bench.image(sampler="ddpm", steps=50))
    seen = []
    for report in reports(engine):
        audit.note(report)
        seen.append(report.seconds)
        assert not audit.is_due or 0.01 * sum(seen) >= 2 * min(seen)


def test_without_a_share_nothing_is_remembered(bench: Bench) -> None:
    audit = Audit(bench.stages, 0.0)
    serve(bench, audit)
    assert not audit.is_due
