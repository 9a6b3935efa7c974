"""Metrics of a program's calls of the image store."""

from prometheus_client import CollectorRegistry, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)


class StoreMetrics:
    """Latency of the store's calls, by operation (put, get, has, delete) and outcome (ok, missing, failed)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "adm_store_seconds",
            "Time of a call of the image store, its retries included",
            ("operation", "outcome"),
            buckets=SECONDS,
            registry=registry,
        )

    def note(self, operation: str, outcome: str, seconds: float) -> None:
        """Note one call."""
        self._seconds.labels(operation, outcome).observe(seconds)
