"""A fault of the service itself is an answer that its log explains; a start raises the limit of open files."""

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2
import pytest
from structlog.testing import capture_logs

from jobs.settings import Settings
from service.metrics import Metrics
from service.middleware import Requests
from service.request_spans import RequestSpans
from tests.service.conftest import ROOT, running_service
from tests.waiting import eventually
from tracing.recording import OFF


def test_fault_of_the_service_is_a_problem_with_the_request_id_of_its_log_line(settings: Settings) -> None:
    async def fails(*call: object) -> None:
        raise RuntimeError("a secret of the log")

    app = Requests(fails, Metrics(), settings, RequestSpans(OFF), {})

    async def get() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get("/v1/jobs")

    with capture_logs() as logs:
        answer = asyncio.run(get())
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert answer.json()["detail"] == "the service failed; its log has the error under this request's id"
    assert answer.headers["x-request-id"]
    assert "secret" not in answer.text
    assert "failed" in [each["event"] for each in logs]


RUN = "runpy.run_module({!r}, run_name='__main__')"


@pytest.mark.slow
def test_service_raises_its_limit_of_open_files(service_settings: Settings) -> None:
    def start(
        module: str, arguments: Sequence[str], environment: Mapping[str, str], output: int, imports: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        limited = (
            f"import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (500, 5000)); {RUN.format(module)}"
        )
        command = [sys.executable, "-c", limited, *arguments]
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=ROOT)

    with running_service(service_settings, start) as (_, process, _):

        def limits() -> list[str]:
            lines = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
            return next(each for each in lines if each.startswith("Max open files")).split()[3:5]

        eventually(lambda: limits() == ["5000", "5000"], "the soft limit is the hard one")
