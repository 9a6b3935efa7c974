"""Metrics of the jobs that a worker claims; every heartbeat writes them to Redis."""

from prometheus_client import CollectorRegistry, Counter, Histogram

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)


class QueueMetrics:
    """Metrics of the jobs that one worker claims and ends."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.waited = Histogram(
            "adm_job_queue_seconds",
            "Time from submission to the first start",
            ("pipeline", "priority"),
            buckets=SECONDS,
            registry=registry,
        )
        self.took = Histogram(
            "adm_job_seconds",
            "Time from submission to the end",
            ("pipeline", "status"),
            buckets=SECONDS,
            registry=registry,
        )
        self.requeued = Counter(
            "adm_job_requeues",
            "Jobs requeued, by cause: retry, after a failure; released, by a worker that stops or lacks memory",
            ("pipeline", "cause"),
            registry=registry,
        )
        self.redis_unavailable = Counter(
            "adm_redis_unavailable", "Calls of the queue that failed because Redis was unavailable", registry=registry
        )
        self.images = Counter("adm_images", "Images of completed jobs", ("pipeline",), registry=registry)
        self.fenced = Counter("adm_job_results_fenced", "Results refused: the claim was lost", registry=registry)
