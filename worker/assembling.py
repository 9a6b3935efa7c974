"""Builds the pipelines of a worker from loaded stacks: warmed-up and measured stages, engine, metrics, announcement."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Literal

import structlog
import torch
from prometheus_client import CollectorRegistry

from engine.audit import Audit
from engine.compiling import WrongCodeError
from engine.engine import Engine
from engine.kept_shapes import KeptShapes
from engine.numerics import fingerprint
from engine.pipeline import BASE, UPSAMPLE, Pipeline, build_stages
from engine.stage import Stage
from jobs.contract.errors import SettingsError
from jobs.contract.workers import WorkerInfo
from jobs.settings import Settings
from models.networks.precision import best_precision
from models.stack import Stack
from vocabulary.precisions import Precision
from worker.auditing import Numerics
from worker.compiling import choose_compiler
from worker.loaded_pipelines import LoadedPipelines
from worker.metrics import StepMetrics
from worker.offers import select
from worker.png import encoder_versions
from worker.warmup import measure_steps

log = structlog.get_logger("worker")


def assemble(
    settings: Settings,
    device: torch.device,
    name: str,
    names: Sequence[str],
    stacks: Sequence[Stack],
    *,
    before: LoadedPipelines | None = None,
) -> LoadedPipelines:
    """Build the pipelines of these names from the stacks that have them.

    before: the pipelines that the worker has loaded so far; their stages, metrics and measured costs are kept if they
    are still needed. Raises: WeightsError for a name that no stack has; torch.OutOfMemoryError.
    """
    pipelines = select(names, stacks)
    precision = choose_precision(settings.precision, device)
    keys = {key for each in pipelines.values() for key in each.stage_keys}
    kept = {} if before is None else {key: each for key, each in before.engine.stages.items() if key in keys}
    stages = kept | _build(settings, device, stacks, precision, kept)
    engine = Engine(stages, settings.max_rows)
    for key in kept:
        assert before is not None
        for shape, milliseconds in before.engine.costs.measured_ms(key).items():
            engine.costs.note(key, shape, milliseconds / 1000)
    measure_steps(engine, stages.keys() - kept.keys())
    numerics = Numerics(partial(fingerprints, pipelines, stages, precision), kept_shapes(settings).forget)
    registry = CollectorRegistry() if before is None else before.registry
    info = WorkerInfo(
        name=name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        pipelines=tuple(pipelines),
        row_shapes=engine.row_shapes,
        numerics=numerics.of_all,
        numerics_by_pipeline=numerics.by_pipeline,
        started_at=time.time() if before is None else before.info.started_at,
        last_heartbeat=time.time(),
        version=version("adm-serve"),
    )
    metrics = StepMetrics(registry) if before is None else before.metrics
    return LoadedPipelines(pipelines, engine, info, metrics, registry, numerics, Audit(stages, settings.audit_share))


def fingerprints(
    pipelines: Mapping[str, Pipeline], stages: Mapping[str, Stage], precision: Precision
) -> dict[str, str]:
    """The numerics of each pipeline, from its own stages as they are now."""
    return {
        name: fingerprint(
            {key: stages[key] for key in each.stage_keys}, precision, each.determinants, **encoder_versions()
        )
        for name, each in pipelines.items()
    }


def _build(
    settings: Settings, device: torch.device, stacks: Sequence[Stack], precision: Precision, kept: Mapping[str, Stage]
) -> dict[str, Stage]:
    """The stages of the stacks that are not kept.

    Raises: SettingsError if ADM_COMPILE demands compiling, and it fails or makes wrong code.
    """
    new = [each for each in stacks if not _stage_keys(each) <= kept.keys()]
    if not new:
        return {}
    build = partial(
        build_stages,
        new,
        settings.max_rows,
        precision=precision,
        threads=settings.threads,
        existing=kept.keys(),
        kept=kept_shapes(settings),
    )
    try:
        return build(compiler=choose_compiler(settings, device, new, precision))
    except WrongCodeError as error:
        if settings.compile == "yes":
            raise SettingsError(f"ADM_COMPILE: {error}; set it to no") from error
        log.warning("not_compiled", reason=str(error))
        return build()


def _stage_keys(stack: Stack) -> set[str]:
    return {f"{stack.name}/{BASE}"} | ({f"{stack.name}/{UPSAMPLE}"} if stack.upsampler is not None else set())


def kept_shapes(settings: Settings) -> KeptShapes:
    """The row shapes that agreed in earlier starts on this data folder."""
    return KeptShapes(settings.data / "row-shapes")


def choose_precision(wanted: Literal["auto", Precision], device: torch.device) -> Precision:
    """The precision that a setting selects on a device."""
    return best_precision(device) if wanted == "auto" else wanted


def warn_of_doubt(line: str) -> None:
    """Log a line of the self-check that finds weights doubtful."""
    log.warning("weights_look_wrong", doubt=line, see="docs/self-check.md")
