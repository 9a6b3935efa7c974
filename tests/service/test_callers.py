"""Checks of callers: by Host, by Origin, by the type of a body; and callers that disconnect."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from os import environ

import httpx2
import pytest
from redis import Redis
from starlette.types import Message, Receive, Scope, Send

from jobs.queue.announcements import announce_pipelines
from jobs.redis.rq_keys import job_key
from jobs.settings import Settings
from service.hosts import Hosts, is_same_origin
from service.metrics import Metrics
from service.middleware import Requests
from service.request_spans import RequestSpans
from tests.jobs.samples import DEMO, png
from tests.service.conftest import ROOT, MakeKey, ToyWorker, body, running_service
from tests.service.raw_connection import RawConnection
from tests.service.test_jobs import is_problem
from tests.service.test_metrics import in_progress
from tracing.recording import OFF


@pytest.mark.parametrize(
    ("given", "host", "is_answered"),
    [
        ({}, "localhost:8000", True),
        ({}, "adm.example", False),
        ({}, "10.0.0.7", False),
        ({"host": "0.0.0.0", "allow_anonymous": True}, "adm.example", False),
        ({"host": "0.0.0.0", "allow_anonymous": True}, "10.0.0.7:8000", True),
        ({"host": "::", "allow_anonymous": True}, "[fd00::7]:8000", True),
        ({"host": "adm.local"}, "adm.local:8000", True),
        ({"hosts": "adm.example, Other.Example"}, "other.example:443", True),
        ({"hosts": "adm.example"}, "evil.adm.example", False),
        ({"hosts": "*"}, "anything.example", True),
        ({"hosts": "adm.example"}, "", False),
    ],
)
def test_host_is_accepted_by_its_name(given: dict[str, str], host: str, is_answered: bool) -> None:
    assert (host in Hosts(Settings.model_validate(given))) is is_answered


@pytest.mark.parametrize(
    ("origin", "host", "is_same"),
    [
        ("http://localhost:8000", "localhost:8000", True),
        ("https://adm.example", "adm.example", True),
        ("https://adm.example", "ADM.example:443", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://localhost:3000", "localhost:8000", False),
        ("http://evil.example", "localhost:8000", False),
        ("http://localhost:8000.evil.example", "localhost:8000", False),
        ("null", "localhost:8000", False),
        ("", "", False),
    ],
)
def test_origin_is_the_same_as_the_host_it_names(origin: str, host: str, is_same: bool) -> None:
    assert is_same_origin(origin, host) is is_same


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/x/cancel", "/v1/files"])
def test_page_of_another_origin_changes_nothing_with_a_valid_key_or_without_keys(
    client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey, path: str, has_key: bool
) -> None:
    key = make_key() if has_key else {}
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert is_problem(client.post(path, json=body(), headers=key | {"Origin": origin}), 403)
        assert is_problem(client.delete("/v1/jobs/x", headers=key | {"Origin": origin}), 403)
    assert client.get("/v1/jobs", headers=key | {"Origin": "http://evil.example"}).status_code == 200
    own = str(client.base_url).rstrip("/")
    assert client.post("/v1/jobs", json=body(), headers=key | {"Origin": own}).status_code == 202


@pytest.mark.parametrize(
    "name", ["Host", "Origin", "Sec-Fetch-Site", "Content-Type", "Idempotency-Key", "Last-Event-ID"]
)
def test_header_that_must_be_unique_is_refused_when_it_is_given_twice(address: str, name: str) -> None:
    caller = RawConnection(address)
    host = "" if name == "Host" else "Host: localhost\r\n"
    twice = f"{name}: localhost\r\n{name.lower()}: evil.example\r\n"
    with closing(caller.socket):
        caller.send(f"POST /v1/jobs HTTP/1.1\r\n{host}{twice}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
        status, content = caller.error()
    assert (status, content["detail"]) == (400, f"the request has several {name} headers")


@pytest.mark.parametrize(
    ("target", "status"),
    [("http://localhost", 200), ("http://evil.example", 421), ("http://localhost@evil.example", 421), ("http://", 400)],
)
def test_host_of_an_absolute_target_counts_and_not_the_header(address: str, target: str, status: int) -> None:
    caller = RawConnection(address)
    with closing(caller.socket):
        caller.send(f"GET {target}/livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert caller.status() == status


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_body_of_another_type_is_415(client: httpx2.Client, fleet: ToyWorker, headers: dict[str, str]) -> None:
    assert is_problem(client.post("/v1/jobs", content=json.dumps(body()), headers=headers), 415)


def test_parameters_of_json_are_no_other_type(client: httpx2.Client, fleet: ToyWorker) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/jobs", content=json.dumps(body()), headers=headers).status_code == 202


def test_compressed_upload_is_415(client: httpx2.Client) -> None:
    assert is_problem(client.post("/v1/files", content=b"x", headers={"Content-Encoding": "gzip"}), 415)
    several = [("Content-Encoding", "identity"), ("Content-Encoding", "gzip")]
    assert is_problem(client.post("/v1/files", content=b"x", headers=several), 415)


def test_every_answer_says_who_may_embed_it(client: httpx2.Client) -> None:
    assert client.get("/livez").headers["cross-origin-resource-policy"] == "same-origin"


HANG_UPS = {
    "within a body": b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 99\r\n\r\n{",
    "within an upload": b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nx",
    "within a form": b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n",
    "within chunks": b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
    "in a wait": b"GET /v1/jobs/%s?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "in a stream": b"GET /v1/jobs/%s/events HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.process
@pytest.mark.slow
def test_caller_who_hangs_up_is_no_failure_of_the_service(redis: Redis, service_settings: Settings) -> None:
    with (
        running_service(service_settings) as (address, _, lines),
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        worker = ToyWorker(redis, service_settings)
        worker.hold()
        job_id = client.post("/v1/jobs", json=body()).json()["id"].encode()
        with ExitStack() as callers:
            for sent in HANG_UPS.values():
                connection = socket.create_connection((client.base_url.host, client.base_url.port or 0))
                callers.enter_context(connection).sendall(sent.replace(b"%s", job_id))
            while in_progress(client) < len(HANG_UPS):
                time.sleep(0.01)
        while len(ended := [each for each in lines if '"request"' in each]) < len(HANG_UPS) + 1:
            time.sleep(0.01)
        worker.stop()
    assert not [each for each in lines if "Traceback" in each or '"status": 500' in each]
    assert sum('"status": 499' in each for each in ended) == len(HANG_UPS) - 1  # the stream had begun: 200


@pytest.fixture(scope="module")
def published(service_settings: Settings) -> Iterator[str]:
    with running_service(service_settings, ADM_ROOT_PATH="/adm", ADM_HOSTS="images.example") as (address, _, _):
        yield address


@pytest.mark.process
@pytest.mark.parametrize("left_on", ["", "/adm"])
def test_service_works_under_a_path_whether_the_proxy_takes_it_off_or_not(
    published: str, worker: ToyWorker, left_on: str
) -> None:
    headers = {"Host": "images.example"}
    with httpx2.Client(base_url=published + left_on, headers=headers, timeout=60) as client:
        page = client.get("/")
        for url in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert client.get(f"/{url}").status_code == 200, url
        posted = client.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"})
        job = posted.json()
        assert posted.headers["location"] == f"/adm/v1/jobs/{job['id']}"
        assert job["images"][0]["url"] == f"/adm/v1/jobs/{job['id']}/images/0"
        assert client.get(job["images"][0]["url"].removeprefix("/adm")).status_code == 200
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/adm"}]


@pytest.mark.process
@pytest.mark.parametrize("left_on", ["", "/adm"])
def test_path_with_a_slash_too_many_is_redirected_within_the_same_host(published: str, left_on: str) -> None:
    """A redirect to http:// would have clients of a proxy send their keys without TLS."""
    with httpx2.Client(base_url=published + left_on, headers={"Host": "images.example"}, timeout=60) as client:
        for path, inner in (("/docs/", "/docs"), ("/v1/models/a%3Fb/?x=%2F", "/v1/models/a%3Fb?x=%2F")):
            answer = client.get(path)
            assert (answer.status_code, answer.headers.get("location")) == (307, f"/adm{inner}")
        assert client.get("/docs//").status_code == client.get("/nowhere/").status_code == 404


@pytest.mark.process
@pytest.mark.parametrize("left_on", ["", "/adm"])
def test_problem_names_the_path_that_its_client_called(published: str, worker: ToyWorker, left_on: str) -> None:
    with httpx2.Client(base_url=published + left_on, headers={"Host": "images.example"}, timeout=60) as client:
        for path in ("/v1/jobs/0", "/nowhere", "/v1/models/a%20b"):
            assert client.get(path).json()["instance"] == f"/adm{path}"


def test_request_id_goes_with_the_job(client: httpx2.Client, fleet: ToyWorker, redis: Redis) -> None:
    job_id = client.post("/v1/jobs", json=body(), headers={"X-Request-ID": "abc-1"}).json()["id"]
    assert redis.hget(job_key(job_id), "adm_request_id") == b"abc-1"


def test_job_for_a_pipeline_that_no_worker_has_loaded_yet_is_503_with_a_time_to_retry(
    client: httpx2.Client, redis: Redis
) -> None:
    for fields in (body(), body(model="demo-uncond")):
        response = client.post("/v1/jobs", json=fields)
        assert is_problem(response, 503)
        assert int(response.headers["retry-after"]) > 0
    with redis.pipeline() as pipe:
        announce_pipelines(pipe, [DEMO.model_copy(update={"id": "other"})])
        pipe.execute()
    assert is_problem(client.post("/v1/jobs", json=body()), 503)
    assert is_problem(client.post("/v1/jobs", json=body(model="none")), 422, "/model")


def test_redis_that_evicts_makes_the_service_unready(client: httpx2.Client, redis: Redis) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        for response in (client.get("/readyz"), client.post("/v1/files", content=png())):
            assert is_problem(response, 503)
            assert "maxmemory-policy" in response.json()["detail"]
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert client.get("/readyz").status_code == 200


@pytest.mark.process
def test_service_does_not_start_on_a_redis_that_evicts(redis: Redis, service_settings: Settings) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        environment = environ | {"ADM_REDIS_URL": str(service_settings.redis_url), "ADM_PORT": "0"}
        ended = subprocess.run(
            [sys.executable, "-m", "service.main"],
            check=False,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert ended.returncode != 0
    assert re.fullmatch(r"adm service: ADM_REDIS_URL: .*noeviction\n", ended.stderr)


@pytest.mark.parametrize(
    "text", ['{"steps": 5, "steps": 900}', '{"upsample": {"steps": 1, "steps": 2}}', '{"a": 1, "\\u0061": 2}']
)
def test_name_given_twice_is_refused_whatever_the_values(client: httpx2.Client, text: str) -> None:
    response = client.post("/v1/jobs", content=text, headers={"Content-Type": "application/json"})
    assert is_problem(response, 422, "")
    assert "given twice" in response.json()["detail"]


def test_name_given_twice_is_refused_by_every_call_that_takes_json(client: httpx2.Client) -> None:
    calls = [
        (method, path)
        for path, operations in client.get("/openapi.json").json()["paths"].items()
        for method, operation in operations.items()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    ]
    assert ("post", "/v1/workers/changes") in calls
    for method, path in calls:
        text = '{"model": "demo", "model": "other"}'
        response = client.request(method, path, content=text, headers={"Content-Type": "application/json"})
        assert response.status_code == (400 if path.startswith("/v1/images/") else 422), path
        assert "given twice" in response.text, path


@pytest.mark.parametrize(
    "wrong",
    [{f"f{index}": 1 for index in range(4000)}, {"a" * 60_000: 1}, {"images": ["x"] * 16, "n": "1", "steps": "1"}],
    ids=["many", "long", "few"],
)
def test_answer_to_many_wrong_fields_stays_small(client: httpx2.Client, wrong: dict[str, object]) -> None:
    response = client.post("/v1/jobs", json=wrong)
    assert response.status_code == 422
    assert len(response.content) < 12_000


@pytest.mark.process
@pytest.mark.slow
def test_x_forwarded_for_is_believed_from_trusted_proxies_alone(redis: Redis, service_settings: Settings) -> None:
    for trusted, expected in (("", "127.0.0.1:"), ("127.0.0.1", "203.0.113.9:")):
        with running_service(service_settings, ADM_TRUSTED_PROXIES=trusted) as (address, _, lines):
            httpx2.post(f"{address}/v1/nothing", headers={"X-Forwarded-For": "203.0.113.9"}, timeout=60)
            while not (requests := [json.loads(each) for each in lines if '"request"' in each]):
                time.sleep(0.01)
        assert requests[0]["client"].startswith(expected)


def test_request_that_the_stop_of_the_service_interrupts_is_answered() -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    async def scenario() -> None:
        requests = Requests(app, Metrics(), Settings(), RequestSpans(OFF), {})
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")], "client": None}
        task = asyncio.create_task(requests(scope | {"query_string": b""}, receive, send))
        await asyncio.sleep(0)
        task.cancel()
        await task

    asyncio.run(scenario())
    assert sent[0]["status"] == 503
    assert {b"x-request-id", b"retry-after"} <= {name for name, _ in sent[0]["headers"]}
