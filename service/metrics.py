"""Metrics in Prometheus' text format: the service's own, the queue's, and the workers', which are read from Redis."""

from collections.abc import Iterable, Iterator, Mapping

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from jobs.queue.job_queue import JobQueue
from jobs.storage.store_metrics import StoreMetrics
from jobs.views.estimate import Estimator
from vocabulary.priorities import PRIORITIES

log = structlog.get_logger("service.metrics")

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)


class Metrics:
    """The metrics that the service itself counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="adm_service", registry=self.registry)
        self.requests = Counter(
            "adm_http_requests", "Requests answered", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "adm_http_request_seconds",
            "Time to answer; for streams, until they closed",
            ("method", "route"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "adm_http_requests_in_progress",
            "Requests that are being answered, streams included",
            registry=self.registry,
        )
        self.submitted = Counter(
            "adm_jobs_submitted", "Jobs accepted", ("pipeline", "priority", "kind"), registry=self.registry
        )
        self.webhooks = Counter(
            "adm_webhook_attempts", "Attempts to deliver a webhook", ("event", "outcome"), registry=self.registry
        )
        self.store = StoreMetrics(self.registry)


class Families(Collector):
    """Metric families by name; samples of one family may come from several places."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}

    def add(self, families: Iterable[Metric], **labels: str) -> None:
        """Add families, with additional labels on every sample."""
        for family in families:
            merged = self._families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type, family.unit)
            )
            merged.samples += [each._replace(labels=each.labels | labels) for each in family.samples]

    def collect(self) -> Iterator[Metric]:
        return iter(self._families.values())


def own_text(labels: Mapping[str, str], own: str) -> bytes:
    """The metrics of one process, for use while Redis is unavailable."""
    families = Families()
    families.add(text_string_to_metric_families(own), **labels)
    families.add([gauge("adm_redis_up", "Redis can be reached", [], [((), 0)])])
    return generate_latest(families)


def text(processes: Iterable[tuple[Mapping[str, str], str]], queue: JobQueue) -> bytes:
    """All metrics; `processes`: labels and metrics text of each process of the service. Raises: redis.RedisError."""
    families = Families()
    families.add(queue_families(queue))
    workers = (({"worker": name}, snapshot) for name, snapshot in queue.fleet.metrics().items())
    for labels, snapshot in (*processes, *workers):
        try:
            families.add(list(text_string_to_metric_families(snapshot)), **labels)
        except ValueError as error:
            log.warning("not_understood", key="metrics", **labels, error=str(error)[:80])
    return generate_latest(families)


def queue_families(queue: JobQueue) -> list[Metric]:
    """Metrics of jobs, queues and workers, read from Redis."""
    fleet = queue.fleet.read(fresh=True)
    counted = queue.backlogs(sorted(fleet.pipelines))
    backlogs = [counted.of(each) for each in fleet.pipelines]
    estimator = Estimator(fleet)
    places = [(each, priority) for each in backlogs for priority in PRIORITIES]
    now = queue.ledger.now()
    ages = queue.head_ages(sorted(fleet.pipelines))
    return [
        gauge("adm_redis_up", "Redis can be reached", [], [((), 1)]),
        gauge(
            "adm_webhooks",
            "Deliveries of webhooks: pending ones, and dead ones, which were given up",
            ["state"],
            [((state,), n) for state, n in zip(("pending", "dead"), queue.webhooks.counts(), strict=True)],
        ),
        gauge("adm_jobs", "Jobs kept", ["status"], [((status,), n) for status, n in queue.counts().items()]),
        gauge(
            "adm_queue_jobs",
            "Jobs queued",
            ["pipeline", "priority"],
            [((each.pipeline, priority), each.lengths[priority]) for each, priority in places],
        ),
        gauge(
            "adm_queue_head_age_seconds",
            "Time since the submission of the job that is next; 0 where none is queued",
            ["pipeline", "priority"],
            [(line, age) for line, age in ages.items()],
        ),
        gauge(
            "adm_queue_work_seconds",
            "Time a pipeline's workers would take for only its own queue; 0 until one has announced a step's time",
            ["pipeline", "priority"],
            [((each.pipeline, priority), estimator.own_seconds(each, priority) or 0) for each, priority in places],
        ),
        gauge(
            "adm_pipeline_queued_seconds",
            "Time a pipeline's workers would take for all jobs queued for them, other pipelines' included; do not sum "
            "it over pipelines. Above ADM_QUEUE_LIMIT_SECONDS new jobs of the pipeline are refused",
            ["pipeline"],
            [((each.pipeline,), estimator.queued_seconds(each) or 0) for each in backlogs],
        ),
        gauge(
            "adm_pipeline_workers",
            "Live workers that serve a pipeline",
            ["pipeline"],
            [((name,), len(fleet.workers_of(name))) for name in fleet.pipelines],
        ),
        gauge(
            "adm_worker_heartbeat_age_seconds",
            "Time since a worker's last heartbeat",
            ["worker"],
            [((each.name,), max(0.0, now - each.last_heartbeat)) for each in fleet.workers],
        ),
        gauge(
            "adm_worker_rows_in_flight",
            "Images that a worker is making",
            ["worker"],
            [((each.name,), each.rows_in_flight) for each in fleet.workers],
        ),
    ]


def gauge(name: str, documentation: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family
