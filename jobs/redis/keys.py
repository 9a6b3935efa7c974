"""Names of the project's own keys in Redis, without those of RQ, and the form of their entries."""

import re

from jobs.contract.job import JobStatus
from vocabulary.priorities import PRIORITIES

QUEUE_PREFIX = "adm:"  # of RQ queue names, so that an ordinary `rq worker` never takes these jobs

JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
INDEX_MEMBER = re.compile(r"(\d{16})-([A-Za-z0-9_-]{1,128})")  # microseconds of the creation, and the job
TOKEN = re.compile(r"[0-9a-f]{32}")
EXECUTION = re.compile(r"([A-Za-z0-9_-]{1,128}):([0-9a-f]{32})")  # the job, and the token
QUEUE = re.compile(rf"{QUEUE_PREFIX}.+:(?:{'|'.join(PRIORITIES)})", re.DOTALL)

PIPELINES = "adm:pipelines"  # hash: pipeline -> PipelineInfo, as last announced; outlives its workers for a time
UNHELD = "adm:pipelines-unheld"  # sorted set: pipelines without a live worker, by the time when that was first seen
RETIRED = "adm:pipelines-retired"  # set: pipelines that were removed, and not announced since
SWEEPS = "adm:sweeps"  # hash: pipeline -> Sweep, if it has one; removed with the pipeline
STEP_COSTS = "adm:step-costs"  # hash: pipeline -> step_ms of the latest heartbeat; outlives the worker
WORKERS = "adm:workers"  # set of names; the record of each expires with its heartbeats
LEASES = "adm:leases"  # sorted set: "job:token" by the time the lease ends
EXPIRING = "adm:expiring"  # sorted set: jobs that wait, by the time they expire
ENDED = "adm:ended"  # sorted set: jobs that have ended, by the time they are to be removed
CALLERS_QUEUED = "adm:callers-queued"  # hash: caller -> estimated device time of its queued jobs, in milliseconds
JOB_CALLERS = "adm:job-callers"  # hash: index member -> caller, of jobs made with a key; outlives the job's own hash
FILE_BYTES = "adm:file-bytes"  # hash: uploaded picture -> bytes that a quota counts for its PNG
FILE_CALLERS = "adm:file-callers"  # hash: uploaded picture -> caller, of those that were uploaded with a key
FILE_SUMS = "adm:file-sums"  # hash: caller, and ALL_CALLERS -> sum of FILE_BYTES
FILE_EXPIRY = "adm:file-expiry"  # sorted set: uploaded pictures, by the time at which to look whether they have expired
ALL_CALLERS = "all"  # no caller's id
STORE_CLEANED = "adm:store-cleaned"  # present as long as the upkeep need not list the whole image store again
WEBHOOKS = "adm:webhooks"  # sorted set: deliveries by the time when they are due
DEAD_WEBHOOKS = "adm:webhooks-dead"  # sorted set: dead letters, by the time of the last attempt
API_KEYS = "adm:api-keys"  # hash: caller -> KeyRecord; any entry, even of a revoked key, makes every caller need a key
API_KEYS_VERSION = "adm:api-keys-version"  # a text that differs after each change of the keys
WAKE_CHANNEL = "adm:wake"  # pub/sub: a queue's name whenever a job was added to it


def queue(pipeline: str, priority: str) -> str:
    """Name of the RQ queue of a pipeline and priority."""
    return f"{QUEUE_PREFIX}{pipeline}:{priority}"


def turn_ends(queue: str) -> str:
    """Hash: caller -> end of its latest turn in a queue."""
    return f"adm:turns:{queue}"


def own_line(queue: str, caller: str) -> str:
    """Sorted set of a caller's jobs in a queue, by their turns; jobs without a caller have none."""
    return f"adm:line:{caller}:{queue}"


def index(status: JobStatus | None = None, caller: str = "") -> str:
    """Sorted set of the index members of all jobs, or of the jobs of one status.

    All scores are 0, so that Redis sorts the members as texts, which is by creation. caller: only jobs of this caller.
    """
    jobs = f"adm:jobs-of:{caller}" if caller else "adm:jobs"
    return jobs if status is None else f"{jobs}:{status}"


def indexes(status: JobStatus | None, caller: str) -> tuple[str, ...]:
    """The indexes that contain a job of a caller: the common one, and the caller's own if it has a key."""
    return (index(status), index(status, caller)) if caller else (index(status),)


def index_member(created_at: float, job_id: str) -> str:
    """Member of an index; sorts by creation, and is the cursor of a page."""
    return f"{int(created_at * 1_000_000):016d}-{job_id}"


def queued_work(pipeline: str) -> str:
    """Hash: row steps queued, by "priority:rank:stage", and of jobs in progress, by "running:rank:stage"."""
    return f"adm:work:{pipeline}"


def estimate_ratios(pipeline: str) -> str:
    """List: ratios of actual to estimated time of the last jobs."""
    return f"adm:estimate-ratios:{pipeline}"


def worker(name: str) -> str:
    """A worker's WorkerInfo."""
    return f"adm:worker:{name}"


def worker_process(name: str) -> str:
    """The process that has a worker's name; expires without heartbeats."""
    return f"adm:worker-process:{name}"


def worker_metrics(name: str) -> str:
    """A worker's metrics in Prometheus' text form."""
    return f"adm:worker-metrics:{name}"


def change(change_id: str) -> str:
    """Hash: a change of workers' pipelines, and the progress of each worker."""
    return f"adm:change:{change_id}"


def worker_changes(name: str) -> str:
    """List: changes that a worker has not answered, the oldest first."""
    return f"adm:changes-of:{name}"


def service_metrics(service: str, index: int) -> str:
    """Metrics of one process of a service, in Prometheus' text form."""
    return f"adm:service-metrics:{service}:{index}"


def events(job_id: str) -> str:
    """Stream of a job's events."""
    return f"adm:events:{job_id}"


def progress(job_id: str) -> str:
    """The progress of a job; expires soon after the last heartbeat of its worker."""
    return f"adm:progress:{job_id}"


def file(file_id: str) -> str:
    """Record of an uploaded picture; expires with it."""
    return f"adm:file:{file_id}"


def webhook(delivery_id: str) -> str:
    """Hash: one delivery of a webhook."""
    return f"adm:webhook:{delivery_id}"


def webhooks_of(caller: str) -> str:
    """Sorted set: a caller's pending deliveries, by the time when they were queued; none for the caller ""."""
    return f"adm:webhooks-of:{caller}"


def channel(job_id: str) -> str:
    """Pub/sub: an empty message for every event of a job, a preview's JSON for every preview."""
    return f"adm:job:{job_id}"
