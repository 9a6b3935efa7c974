from structlog.testing import capture_logs

from jobs.contract.caller import ANONYMOUS
from jobs.contract.request import JobRequest
from jobs.queue.drafting import Submission, Submitted
from tests.worker.conftest import Bench
from worker.inbox import Inbox


def test_workers_lines_about_a_job_carry_the_id_of_the_request_that_queued_it(bench: Bench, inbox: Inbox) -> None:
    (queued,) = bench.queue.submitter.submit_all([Submission(JobRequest(class_label=1), ANONYMOUS, request_id="abc-1")])
    assert isinstance(queued, Submitted)
    with capture_logs() as lines:
        (claim,) = bench.claim(inbox)
        assert bench.finish(inbox, claim)
    logged = [(each["event"], each["job_id"], each["request_id"]) for each in lines]
    assert logged == [("claimed", queued.job.id, "abc-1"), ("ended", queued.job.id, "abc-1")]
