"""One trace from a caller's request to its stored image, over OTLP/HTTP; and collectors that hang or do not exist."""

import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from redis import Redis

from jobs.contract.caller import Role
from jobs.settings import Settings
from tests.conftest import RedisServer
from tests.jobs.samples import DEMO
from tests.service.conftest import MakeKey, body, running_service
from tests.waiting import eventually
from tests.worker.programs import WorkerProcess
from tests.worker.tiny_stack import write_tiny_stack

pytestmark = [pytest.mark.slow, pytest.mark.process]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
SECRETS = {"user": "hidden-user", "metadata": {"hidden-name": "hidden-value"}}


class Collector(ThreadingHTTPServer):
    """Takes spans as a collector of OTLP/HTTP does."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), Claimer)

    @property
    def variables(self) -> dict[str, str]:
        return variables(self.server_address[1])

    def spans(self) -> list[tuple[str, Span]]:
        """All that have come, each with the name of its service."""
        return [
            (text(resource.resource.attributes, "service.name"), span)
            for each in list(self.bodies)
            for resource in ExportTraceServiceRequest.FromString(each).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Claimer(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def variables(port: int) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_BSP_SCHEDULE_DELAY": "50"}


def values(attributes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    each: KeyValue
    for each in attributes:
        kind = each.value.WhichOneof("value")
        assert kind is not None
        found[each.key] = getattr(each.value, kind)
    return found


def text(attributes: Any, name: str) -> str:
    return str(values(attributes).get(name, ""))


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = Thread(target=collector.serve_forever)
    thread.start()
    yield collector
    collector.shutdown()
    thread.join()
    collector.server_close()


@contextmanager
def running(redis_server: RedisServer, folder: Path, given: Mapping[str, str]) -> Iterator[tuple[str, WorkerProcess]]:
    """A service and a worker with these variables."""
    write_tiny_stack(folder / "weights")
    settings = Settings(
        data=folder / "data", redis_url=redis_server.address, weights=folder / "weights", fleet_refresh_seconds=0
    )
    with ExitStack() as stack:
        address, _, _ = stack.enter_context(running_service(settings, **given))
        worker = WorkerProcess(settings, folder, "traced-0", **given)
        stack.callback(worker.end)
        worker.wait_ready()
        yield address, worker


def test_one_trace_leads_from_the_callers_request_to_the_stored_image(
    redis: Redis, redis_server: RedisServer, tmp_path: Path, collector: Collector, make_key: MakeKey
) -> None:
    key = make_key("ann", Role.USER)
    with running(redis_server, tmp_path, collector.variables) as (address, worker):
        posted = body(steps=4, n=2) | SECRETS
        headers = key | TRACEPARENT | {"Prefer": "wait=60"}
        job = httpx2.post(f"{address}/v1/jobs", json=posted, headers=headers, timeout=90).json()
        assert job["status"] == "completed", job
        httpx2.get(f"{address}/v1/jobs/{job['id']}", headers=key, timeout=60).raise_for_status()
        httpx2.get(f"{address}/livez", timeout=60).raise_for_status()
        httpx2.request("REPORT", f"{address}/hidden-path", headers=key, timeout=60)
        eventually(
            lambda: {"attempt", "other unmatched"} <= {span.name for _, span in collector.spans()}, "spans arrive"
        )
        eventually(lambda: '"ended"' in worker.output, "the worker says that the job has ended")
        assert set(re.findall(r'"trace_id": "(\w+)"', worker.output)) == {TRACE}
    spans = collector.spans()
    by_name = {span.name: (program, span) for program, span in spans}
    program, request = by_name["POST /v1/jobs"]
    assert (program, request.trace_id.hex(), request.parent_span_id.hex()) == ("adm-service", TRACE, PARENT)
    assert request.kind == Span.SPAN_KIND_SERVER
    assert values(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/jobs",
        "http.response.status_code": 200,
        "adm.job.id": job["id"],
    }
    for name in ("queued", "attempt"):
        program, span = by_name[name]
        assert (program, span.trace_id, span.parent_span_id) == ("adm-worker", request.trace_id, request.span_id)
    attempt = by_name["attempt"][1]
    parts = [span for _, span in spans if span.parent_span_id == attempt.span_id]
    assert sorted(each.name for each in parts) == ["encode", "encode", "store", "store"]
    steps = [(span, link) for _, span in spans for link in span.links if link.span_id == attempt.span_id]
    rows = [(values(span.attributes), values(link.attributes)["adm.rows"]) for span, link in steps]
    assert sum(share for _, share in rows) == job["usage"]["steps"]
    seconds = sum(step["adm.device_seconds"] * share / step["adm.rows"] for step, share in rows)
    assert seconds == pytest.approx(job["usage"]["device_seconds"], abs=6e-5)
    assert "GET /livez" not in by_name
    sent = b"".join(collector.bodies)
    for secret in (b"hidden", b"torus", key["Authorization"].removeprefix("Bearer ").encode()):
        assert secret not in sent, secret


def test_trace_of_a_caller_reaches_the_worker_though_nobody_records_spans(
    redis: Redis, redis_server: RedisServer, service_settings: Settings
) -> None:
    with running_service(service_settings) as (address, _, lines):
        redis.hset("adm:pipelines", "demo", DEMO.model_dump_json())
        job = httpx2.post(f"{address}/v1/jobs", json=body(), headers=TRACEPARENT, timeout=60).json()
        assert redis.hget(f"rq:job:{job['id']}", "adm_traceparent") == TRACEPARENT["traceparent"].encode()
        plain = httpx2.post(f"{address}/v1/jobs", json=body(), timeout=60).json()
        assert redis.hget(f"rq:job:{plain['id']}", "adm_traceparent") is None
        wrong = httpx2.post(
            f"{address}/v1/jobs", json=body(), headers={"traceparent": "hidden-garbage"}, timeout=60
        ).json()
        assert redis.hget(f"rq:job:{wrong['id']}", "adm_traceparent") is None
        eventually(
            lambda: any(TRACE in line and job["id"] in line for line in lines), "the request's line has the trace"
        )


def test_last_spans_are_sent_before_the_programs_end(
    redis: Redis, redis_server: RedisServer, tmp_path: Path, collector: Collector
) -> None:
    never = collector.variables | {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with running(redis_server, tmp_path, never) as (address, worker):
        job = httpx2.post(f"{address}/v1/jobs", json=body(steps=2), headers={"Prefer": "wait=60"}, timeout=90).json()
        assert job["status"] == "completed", job
        assert collector.spans() == []
        worker.process.terminate()
        assert worker.process.wait(300) == 0
        assert {program for program, _ in collector.spans()} == {"adm-worker"}
    assert "POST /v1/jobs" in {span.name for _, span in collector.spans()}


@pytest.mark.parametrize("listens", [True, False])
def test_jobs_are_completed_and_programs_stop_though_the_collector_hangs_or_is_unavailable(
    redis: Redis, redis_server: RedisServer, tmp_path: Path, listens: bool
) -> None:
    """A collector that listens and never answers delays its clients for longest."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen(64)
        with running(redis_server, tmp_path, variables(silent.getsockname()[1])) as (address, worker):
            for number in range(3):
                posted, wait = body(steps=4, seed=number), {"Prefer": "wait=60"}
                job = httpx2.post(f"{address}/v1/jobs", json=posted, headers=wait, timeout=90).json()
                assert job["status"] == "completed", job
            worker.process.terminate()
            assert worker.process.wait(300) == 0
            assert '"stopped"' in worker.output
