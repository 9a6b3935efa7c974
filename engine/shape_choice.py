"""Chooses the row shapes of a stage at start: of the candidates, those that agree bit for bit.

An eager network has a shape for each power of two. A compiled one has few, because each takes up to a minute to
compile, and its code is first compared with the eager form. A large network computes each row alone.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch

from engine.compiling import Compiler, refuse_wrong_code
from engine.lanes import Lanes
from engine.row_shapes import agreeing_shapes, candidates_for, compiled_candidates
from engine.shape_probes import STEPS, layer_shapes, trajectory_states
from engine.stage import Stage
from engine.stage_networks import StageNetworks
from engine.trajectory import Trajectory


@torch.no_grad()
def choose_shapes(stage: Stage, max_rows: int) -> None:
    """Set the row shapes of a stage whose networks are prepared; call this before the first step.

    Every shape is computed here for the first time, so compiled networks are compiled here.
    Raises: WrongCodeError if compiled code disagrees; torch.OutOfMemoryError if memory suffices for no shape.
    """
    networks = stage.networks
    if networks.is_wide:  # each row is computed alone, so there is nothing to compare
        for part in networks.parts:
            stage.row_shapes[part] = (1,)
            networks.probe(part, [stage.rehearsal()], [0])
            if networks.compiler is not None:
                _compare_with_eager(stage, networks.compiler, part, [stage.rehearsal()], [0])
        return
    candidates = candidates_for(stage.device, max_rows, evenly=not networks.has_native_norms)
    lanes, networks.lanes = networks.lanes, Lanes()  # one part at a time, because compiling is not thread-safe
    states = _states(stage, candidates)
    for part in networks.parts:
        stage.row_shapes[part] = _agreeing(stage, part, states, candidates)
    networks.lanes = lanes


def _states(stage: Stage, candidates: Sequence[int]) -> Sequence[Trajectory]:
    """States of real trajectories for comparing the shapes, one for each row of the largest."""
    networks, shapes = stage.networks, tuple(candidates)
    if networks.compiler is not None:
        # only the largest: the comparison of layers may show that others need not be compiled
        shapes = tuple(_to_compile(networks, networks.compiler, "network", candidates))[-1:]
        for part in networks.modules:
            networks.announce(part, shapes[-1])
    for part in networks.parts:
        stage.row_shapes[part] = shapes
    return trajectory_states(stage, candidates[-1])


def _agreeing(stage: Stage, part: str, states: Sequence[Trajectory], candidates: Sequence[int]) -> tuple[int, ...]:
    networks, compiler = stage.networks, stage.networks.compiler
    module = networks.modules.get(part)
    if compiler is not None:
        candidates = _to_compile(networks, compiler, part, candidates)
    if module is not None and (compiler is None or networks.keeps_kernels):
        run = partial(networks.probe, part, [stage.rehearsal()], [0])
        with networks.eagerly():
            candidates = layer_shapes(module, run, candidates, with_gradient=part == "guide")
    if compiler is not None:  # before shapes are compared, because NaN does not even equal itself
        _compare_with_eager(stage, compiler, part, states, range(candidates[-1]))
    # as many windows of one row as a trajectory has steps, to cover all timesteps and scales
    shapes = agreeing_shapes(partial(networks.probe, part, states), candidates, windows=STEPS)
    if compiler is not None:
        compiler.note(f"{stage.name} {part}", shapes)
    return shapes


def _to_compile(networks: StageNetworks, compiler: Compiler, part: str, candidates: Sequence[int]) -> Sequence[int]:
    in_half = networks.precision != "fp32" and not networks.keeps_kernels
    agreed = compiler.agreed(f"{networks.name} {part}")
    return compiled_candidates(candidates, compiler.candidates, agreed, generated_in_half=in_half)


def _compare_with_eager(
    stage: Stage, compiler: Compiler, part: str, states: Sequence[Trajectory], rows: Sequence[int]
) -> None:
    """Compare a compiled part with its eager form. Raises: WrongCodeError."""
    found = stage.networks.probe(part, states, rows)
    with stage.networks.eagerly():
        expected = stage.networks.probe(part, states, rows)
    refuse_wrong_code(f"{stage.name} {part}", compiler.version, found, expected, math.prod(stage.shape))
