"""Runs audits while the worker is idle, logs and counts them, and renews the numerics when one finds a difference."""

from collections.abc import Callable

import structlog
import torch

from engine.audit import Audit
from engine.engine import Engine
from engine.short_hash import short_hash
from worker.metrics import StepMetrics

log = structlog.get_logger("worker.auditing")


class Numerics:
    """The numerics fingerprint of each pipeline of a worker; it changes when an audit disables a row shape.

    A pipeline's fingerprint covers only its own networks, so that a job's checkpoint can be used by every worker that
    has loaded these in the same way, whatever else it has loaded. compute: computes all fingerprints. forget_shapes:
    makes later starts compare the row shapes again.
    """

    def __init__(self, compute: Callable[[], dict[str, str]], forget_shapes: Callable[[], None]) -> None:
        self._compute, self._forget_shapes = compute, forget_shapes
        self.by_pipeline = compute()

    def of(self, pipeline: str) -> str:
        return self.by_pipeline[pipeline]

    @property
    def of_all(self) -> str:
        """One fingerprint of all pipelines; workers with the same one generate the same bytes in every pipeline."""
        return short_hash(self.by_pipeline)

    def renew(self) -> None:
        """Compute the fingerprints again, after a difference that the comparison at start had not found."""
        self._forget_shapes()
        self.by_pipeline = self._compute()


class Auditing:
    """The audits of one worker. All methods are for the loop's thread."""

    def __init__(self, engine: Engine, audit: Audit, numerics: Numerics, metrics: StepMetrics) -> None:
        self._engine, self._audit, self._numerics, self._metrics = engine, audit, numerics, metrics
        self.note = audit.note

    def run_if_due(self) -> None:
        """Recompute one step taken since the last audit; call this only while the worker has no job."""
        if not self._audit.is_due:
            return
        try:
            difference = self._audit.run()
        except torch.AcceleratorError:
            raise  # the device is lost, and the process with it
        except Exception as error:  # noqa: BLE001 - an audit must not end a worker that serves
            log.error("audit_failed", error=f"{type(error).__name__}: {error}")
            return
        finally:
            for key, stage in self._engine.stages.items():  # an audit that runs out of memory disables row shapes
                self._engine.costs.keep(key, stage.row_shapes["network"])
        self._metrics.audits.inc()
        if difference is None:
            return
        stage = self._engine.stages[difference.stage]
        self._metrics.differences.labels(stage.name).inc()
        before = self._numerics.of_all
        self._numerics.renew()
        log.error(
            "audit_difference",
            stage=difference.stage,
            timestep=difference.timestep,
            class_label=difference.class_label,
            row_shape=difference.row_shape,
            out_of_use={part: list(shapes) for part, shapes in difference.guilty.items()},
            shapes_left={part: list(shapes) for part, shapes in stage.row_shapes.items()},
            numerics_before=before,
            numerics=self._numerics.of_all,
            see="docs/decisions/0014-a-row-is-computed-by-one-thread.md",
        )
