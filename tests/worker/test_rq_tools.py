"""RQ's own tools see the jobs and workers, and do no harm."""

import subprocess
import sys
import time

from redis import Redis
from rq.command import send_stop_job_command
from rq.job import Job as RqJob
from rq.queue import Queue
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.worker import Worker

from jobs.contract.errors import FailureKind
from jobs.settings import Settings
from tests.jobs.samples import worker_info
from tests.worker.conftest import Bench
from worker.claim import Cancel
from worker.inbox import Inbox


def test_rq_sees_queued_running_finished_and_failed_jobs(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    done, failed, running, waiting = (bench.submit() for _ in range(4))
    claims = {each.job_id: each for each in bench.claim(inbox, room=3)}
    inbox.heartbeat(worker_info(), "")
    bench.finish(inbox, claims[done])
    inbox.results.fail(claims[failed], FailureKind.STEP_FAILED, "the step raised", retry=False)
    queue = Queue("adm:demo:normal", connection=redis, serializer=JSONSerializer)
    assert queue.job_ids == [waiting]
    assert StartedJobRegistry(queue=queue).get_job_ids() == [running]
    assert FinishedJobRegistry(queue=queue).get_job_ids() == [done]
    assert FailedJobRegistry(queue=queue).get_job_ids() == [failed]
    (worker,) = Worker.all(connection=redis, serializer=JSONSerializer)
    assert (worker.name, worker.get_state(), worker.current_execution_count) == ("cpu-0", "busy", 1)
    job = RqJob.fetch(done, connection=redis, serializer=JSONSerializer)
    assert job.is_finished
    assert job.return_value() == "1 image"
    assert job.description == "1 x torus, 25 steps of ddim"
    result = RqJob.fetch(failed, connection=redis, serializer=JSONSerializer).latest_result()
    assert result is not None
    assert result.exc_string == "step-failed: the step raised"


def test_rq_info_does_not_requeue_a_silent_workers_job(
    bench: Bench, inbox: Inbox, redis: Redis, settings: Settings
) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    StartedJobRegistry("adm:demo:normal", connection=redis).cleanup(timestamp=time.time() + 10**6)
    command = [sys.executable, "-m", "rq.cli", "info", "--raw", "--url", settings.redis_address]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "queue adm:demo:normal 0" in shown
    assert "worker cpu-0" in shown
    assert bench.finish(inbox, claim)
    assert bench.status(job_id) == "completed"


def test_rqs_own_stop_command_reaches_the_loop(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit()
    bench.claim(inbox)
    send_stop_job_command(redis, job_id, serializer=JSONSerializer)
    assert inbox.poll(room=0, wait_seconds=1) == [Cancel(job_id)]


def test_nothing_in_redis_is_pickled(bench: Bench, inbox: Inbox, redis: Redis) -> None:
    job_id = bench.submit()
    (claim,) = bench.claim(inbox)
    bench.finish(inbox, claim)
    record = bench.queue.ledger.read(job_id)
    assert record is not None
    assert not any(value.startswith(b"\x80") for value in record.fields.values())
    assert RqJob.fetch(job_id, connection=redis, serializer=JSONSerializer).kwargs["request"]["seed"] == 5


def test_closed_worker_is_gone_from_the_fleet(bench: Bench, inbox: Inbox) -> None:
    inbox.heartbeat(worker_info(), "adm_x 1\n")
    assert [each.name for each in bench.queue.fleet.read(fresh=True).workers] == ["cpu-0"]
    assert bench.queue.fleet.metrics() == {"cpu-0": "adm_x 1\n"}
    inbox.close()
    assert bench.queue.fleet.read(fresh=True).workers == ()
    assert Worker.all(connection=bench.redis) == []
    assert set(bench.queue.fleet.read().pipelines) == {"demo", "demo-uncond"}  # still known, so that jobs may wait
