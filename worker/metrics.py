"""Metrics of a worker's steps; every heartbeat writes them to Redis."""

import resource

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class StepMetrics:
    """Latency, occupancy and memory of one worker."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.latency = Histogram(
            "adm_step_seconds", "Time of an engine step", ("stage", "shape"), buckets=STEP_SECONDS, registry=registry
        )
        self.rows = Counter("adm_step_rows", "Images moved by engine steps", ("stage",), registry=registry)
        self.padding = Counter(
            "adm_step_padding_rows", "Rows computed only to fill a shape", ("stage",), registry=registry
        )
        self.occupancy = Gauge(
            "adm_batch_occupancy", "Share of the last step's rows that were images", registry=registry
        )
        self.in_flight = Gauge("adm_rows_in_flight", "Images in the engine", registry=registry)
        self.max_rows = Gauge("adm_max_rows", "Largest number of images in a step", registry=registry)
        self.in_filing = Gauge(
            "adm_images_in_filing", "Images and previews that wait to be encoded and stored", registry=registry
        )
        self.audits = Counter("adm_audits", "Steps that audits computed again", registry=registry)
        self.differences = Counter(
            "adm_audit_differences", "Audits whose result differed from the first one", ("stage",), registry=registry
        )
        self.memory = Gauge(
            "adm_device_memory_bytes",
            "GPU: memory that torch has allocated; CPU: peak memory of the process",
            registry=registry,
        )

    def stepped(self, stage: str, rows: int, shape: int, seconds: float, in_flight: int) -> None:
        """Count a step of `rows` images at a row shape; seconds: its device time."""
        self.latency.labels(stage, str(shape)).observe(seconds)
        self.rows.labels(stage).inc(rows)
        self.padding.labels(stage).inc(shape - rows)
        self.occupancy.set(rows / shape)
        self.in_flight.set(in_flight)

    def note_memory(self, device: torch.device) -> None:
        """Set the gauge of the device's memory; for a CPU, the process' peak."""
        if device.type == "cuda":
            self.memory.set(torch.cuda.memory_allocated(device))
        else:
            self.memory.set(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
