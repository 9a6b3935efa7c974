"""The profile of a worker's time from its metrics: the batches that it chose, and their times."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

SECONDS, COUNT, ROWS = "adm_step_seconds_sum", "adm_step_seconds_count", "adm_step_rows_total"


@dataclass(frozen=True)
class Steps:
    """Totals of a worker's steps since its start: seconds and steps by (stage, row shape), images by stage."""

    seconds: Mapping[tuple[str, int], float]
    steps: Mapping[tuple[str, int], float]
    rows: Mapping[str, float]

    @classmethod
    def of(cls, metrics: str) -> "Steps":
        """Parse the text of GET /metrics."""
        by_shape: dict[str, dict[tuple[str, int], float]] = {SECONDS: defaultdict(float), COUNT: defaultdict(float)}
        rows: dict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(metrics):
            for sample in family.samples:
                if sample.name in by_shape:
                    by_shape[sample.name][sample.labels["stage"], int(sample.labels["shape"])] += sample.value
                elif sample.name == ROWS:
                    rows[sample.labels["stage"]] += sample.value
        return cls(by_shape[SECONDS], by_shape[COUNT], rows)

    def since(self, earlier: "Steps") -> "Steps":
        return Steps(
            {key: each - earlier.seconds.get(key, 0.0) for key, each in self.seconds.items()},
            {key: each - earlier.steps.get(key, 0.0) for key, each in self.steps.items()},
            {key: each - earlier.rows.get(key, 0.0) for key, each in self.rows.items()},
        )

    def losses(self, row_seconds: Callable[[str], float], full: int, wall: float) -> dict[str, float]:
        """Three factors whose product is the rate against full batches on an idle machine, over `wall` seconds.

        row_seconds: of a stage's row, in a full batch of the bare engine.
        """
        in_steps = sum(self.seconds.values())
        ideal = sum(count * row_seconds(stage) for stage, count in self.rows.items())
        here = {
            stage: self.seconds[stage, full] / self.steps[stage, full] / full
            for stage in self.rows
            if self.steps.get((stage, full))
        }
        at_full_here = sum(count * here.get(stage, row_seconds(stage)) for stage, count in self.rows.items())
        return {
            "share of the time in steps": in_steps / wall,
            "full batches' time against that of the batches taken": at_full_here / in_steps,
            "a full step of the bare engine against one beside the service": ideal / at_full_here,
        }
