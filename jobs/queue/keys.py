"""Names of everything the project keeps in Redis beside RQ's own keys."""

from jobs.contract.job import JobStatus

QUEUE_PREFIX = "adm:"  # of RQ queue names; ours, so that an ordinary `rq worker` never takes these jobs

PIPELINES = "adm:pipelines"  # hash: pipeline -> PipelineInfo, as last announced; outlives its workers for a time
UNHELD = "adm:pipelines-unheld"  # sorted set: pipelines that no live worker holds, by the time that was first seen
RETIRED = "adm:pipelines-retired"  # set: pipelines that were known and are no more; announcing one takes it out
STEP_COSTS = "adm:step-costs"  # hash: pipeline -> step_ms of the worker that spoke last; outlives it too
WORKERS = "adm:workers"  # set of names; the record of each expires with its heartbeats
LEASES = "adm:leases"  # sorted set: "job:token" by the time the lease ends
EXPIRING = "adm:expiring"  # sorted set: jobs that wait, by the time they expire
ENDED = "adm:ended"  # sorted set: jobs that have ended, by the time they are to be removed
CALLERS_QUEUED = "adm:callers-queued"  # hash: caller -> estimated milliseconds of a device of its queued jobs
JOB_CALLERS = "adm:job-callers"  # hash: index member -> caller, of jobs made with a key; outlives the job's own hash
FILE_BYTES = "adm:file-bytes"  # hash: uploaded picture -> bytes that its PNG counts for
STORE_SWEPT = "adm:store-swept"  # there for as long as nobody needs to list the whole image store again
WEBHOOKS = "adm:webhooks"  # sorted set: deliveries by the time when they are due
DEAD_WEBHOOKS = "adm:webhooks-dead"  # sorted set: deliveries that were given up, by when
API_KEYS = "adm:api-keys"  # hash: caller -> KeyRecord; with any entry, also of a revoked key, callers need one
API_KEYS_VERSION = "adm:api-keys-version"  # another text after each change of them
WAKE_CHANNEL = "adm:wake"  # pub/sub: a queue's name whenever a job was added to it


def queue(pipeline: str, priority: str) -> str:
    """Name of the RQ queue of a pipeline and priority."""
    return f"{QUEUE_PREFIX}{pipeline}:{priority}"


def turn_ends(queue: str) -> str:
    """Hash: caller -> end of its latest turn in a queue."""
    return f"adm:turns:{queue}"


def own_line(queue: str, caller: str) -> str:
    """Sorted set of a caller's jobs in a queue, by their turns; there are none of jobs without a caller."""
    return f"adm:line:{caller}:{queue}"


def index(status: JobStatus | None = None, caller: str = "") -> str:
    """Sorted set, all scores 0, of index members: jobs of one status, or all; lexical order is that of creation.

    caller: those of one caller alone.
    """
    jobs = f"adm:jobs-of:{caller}" if caller else "adm:jobs"
    return jobs if status is None else f"{jobs}:{status}"


def indexes(status: JobStatus | None, caller: str) -> tuple[str, ...]:
    """The indexes that hold a job of a caller: everybody's, and the caller's own if it has a key."""
    return (index(status), index(status, caller)) if caller else (index(status),)


def index_member(created_at: float, job_id: str) -> str:
    """Member of an index; sorts by creation, and serves as the cursor of a page."""
    return f"{int(created_at * 1_000_000):016d}-{job_id}"


def queued_work(pipeline: str) -> str:
    """Hash: row steps queued, by "priority:rank:stage", and of jobs in progress, by "running:rank:stage"."""
    return f"adm:work:{pipeline}"


def estimate_ratios(pipeline: str) -> str:
    """List: what the last jobs took, of what had been reckoned for them when they came."""
    return f"adm:estimate-ratios:{pipeline}"


def worker(name: str) -> str:
    """A worker's WorkerInfo."""
    return f"adm:worker:{name}"


def worker_process(name: str) -> str:
    """Which process has a worker's name; expires when it falls silent."""
    return f"adm:worker-process:{name}"


def worker_metrics(name: str) -> str:
    """A worker's metrics in Prometheus' text form."""
    return f"adm:worker-metrics:{name}"


def service_metrics(service: str, index: int) -> str:
    """Metrics of one process of a service, in Prometheus' text form."""
    return f"adm:service-metrics:{service}:{index}"


def events(job_id: str) -> str:
    """Stream of a job's events."""
    return f"adm:events:{job_id}"


def progress(job_id: str) -> str:
    """How far a job is; expires soon after its worker falls silent."""
    return f"adm:progress:{job_id}"


def file(file_id: str) -> str:
    """Record of an uploaded picture; expires with it."""
    return f"adm:file:{file_id}"


def webhook(delivery_id: str) -> str:
    """Hash: one delivery of a webhook."""
    return f"adm:webhook:{delivery_id}"


def channel(job_id: str) -> str:
    """Pub/sub: an empty message for every event of a job, a preview's JSON for every preview."""
    return f"adm:job:{job_id}"
