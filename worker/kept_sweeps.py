"""Reads the sweeps that are stored beside the weights of a worker's pipelines."""

from collections.abc import Sequence
from pathlib import Path

import structlog
from pydantic import ValidationError

from jobs.contract.pipelines import PipelineInfo
from jobs.contract.sweeps import SUFFIX, Sweep

log = structlog.get_logger("worker")


def kept_sweeps(weights: Path, pipelines: Sequence[PipelineInfo]) -> list[Sweep]:
    """The sweeps of pipelines; an unreadable one, or one made with other weights, is skipped with a warning."""
    return [sweep for each in pipelines if (sweep := kept_sweep(weights, each)) is not None]


def kept_sweep(weights: Path, pipeline: PipelineInfo) -> Sweep | None:
    for path in sorted(weights.glob(f"*/{pipeline.id}{SUFFIX}")):
        try:
            sweep = Sweep.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            log.warning("sweep_left_out", file=str(path), reason=f"it cannot be read: {type(error).__name__}")
            continue
        if (sweep.pipeline, sweep.weights) == (pipeline.id, weights_of(pipeline)):
            return sweep
        log.warning(
            "sweep_left_out", file=str(path), reason="it was measured with other weights or on another pipeline"
        )
    return None


def weights_of(pipeline: PipelineInfo) -> tuple[str, ...]:
    """Hashes of the networks that make a pipeline's base images."""
    base = pipeline.stages[0]
    return tuple(filter(None, (base.model_hash, base.classifier_hash)))
