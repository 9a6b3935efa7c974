"""Names of RQ's keys in Redis; `jobs.queue.rq_registries` writes what `rq info` and rq-dashboard read there."""

from rq.defaults import RQ_KEY_PREFIX
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE
from rq.job import Job
from rq.queue import Queue
from rq.registry import ScheduledJobRegistry, StartedJobRegistry
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

QUEUES_KEY = Queue.redis_queues_keys  # set of the queues' keys


def job_key(job_id: str) -> str:
    return f"{Job.redis_job_namespace_prefix}{job_id}"


def results_key(job_id: str) -> str:
    """Stream of a job's results."""
    return f"{RQ_KEY_PREFIX}:results:{job_id}"


def queue_key(queue: str) -> str:
    return f"{Queue.redis_queue_namespace_prefix}{queue}"


def executions_key(worker_name: str) -> str:
    """Set of "job:execution" that a worker has in flight."""
    return WORKER_EXECUTIONS_KEY_TEMPLATE.format(worker_name)


def delayed_key(queue: str) -> str:
    """Sorted set of a queue's delayed jobs, by the time at which they enter it."""
    return ScheduledJobRegistry.key_template.format(queue)


def started_key(queue: str) -> str:
    return StartedJobRegistry.key_template.format(queue)


def workers_key(queue: str) -> str:
    """Set of the workers that listen to a queue."""
    return WORKERS_BY_QUEUE_KEY % queue
