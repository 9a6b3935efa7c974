import json
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from jobs.contract.errors import ErrorKind
from jobs.settings import Settings
from service.problems import HTTP_STATUS, TITLES
from tests.conftest import RedisServer
from tests.refusals import REFUSALS, Refusal
from tests.service.conftest import ROOT, MakeKey, ToyWorker, body, running_service
from tests.service.test_jobs import is_problem
from tests.service.test_metrics import in_progress
from tests.warm import start_cold


def test_every_error_kind_has_one_status_and_title() -> None:
    assert set(HTTP_STATUS) == set(TITLES) == set(ErrorKind)


def test_unknown_route_and_method_are_problems(client: httpx2.Client) -> None:
    unknown = client.get("/v1/nothing")
    assert is_problem(unknown, 404)
    assert unknown.json()["detail"] == "nothing is at this path; /docs lists the calls"
    assert is_problem(client.get("/static/nothing.js"), 404)
    assert is_problem(client.get("/docs/../../secret"), 404)
    assert is_problem(client.put("/v1/jobs"), 405)


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v1/jobs", "GET, HEAD, POST"),
        ("/v1/jobs/x", "DELETE, GET, HEAD"),
        ("/v1/jobs/x/cancel", "POST"),
        ("/livez", "GET, HEAD"),
        ("/", "GET, HEAD"),
        ("/static/index.html", "GET, HEAD"),
    ],
)
def test_405_names_every_method_of_the_path(client: httpx2.Client, path: str, allow: str) -> None:
    response = client.patch(path)
    assert is_problem(response, 405)
    assert response.headers["allow"] == allow


def test_head_is_answered_as_get_without_a_body(client: httpx2.Client, fleet: ToyWorker) -> None:
    job_id = client.post("/v1/jobs", json=body()).json()["id"]
    for path in ("/", "/livez", "/docs", "/v1/jobs", "/v1/models/demo", "/static/index.html", f"/v1/jobs/{job_id}"):
        head, got = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (got.status_code, b"") == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
    assert client.head("/livez").headers["content-length"] == client.get("/livez").headers["content-length"]
    assert client.head(f"/v1/jobs/{job_id}/events").headers["content-type"].startswith("text/event-stream")
    assert client.head(f"/v1/jobs/{job_id}/images/0").status_code == 409
    assert client.head(f"/v1/jobs/{job_id}/cancel").status_code == 405


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "[::2]", ""])
def test_name_that_somebody_else_resolves_to_loopback_is_refused(client: httpx2.Client, host: str) -> None:
    assert is_problem(client.get("/v1/jobs", headers={"Host": host}), 421)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "[::2]", ""])
def test_name_that_somebody_else_resolves_to_loopback_is_refused_with_a_valid_key_too(
    client: httpx2.Client, make_key: MakeKey, host: str
) -> None:
    key = make_key()
    assert client.get("/v1/jobs", headers=key).status_code == 200
    assert is_problem(client.get("/v1/jobs", headers=key | {"Host": host}), 421)


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_every_name_of_loopback_is_answered(client: httpx2.Client, host: str) -> None:
    assert client.get("/livez", headers={"Host": host}).status_code == 200


def test_request_id_is_echoed_or_made(client: httpx2.Client) -> None:
    assert client.get("/livez", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = client.get("/livez", headers={b"X-Request-ID": b"a b\xe9"}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert client.get("/nothing").headers["x-request-id"]


@pytest.mark.parametrize("has_key", [False, True])
def test_pages_of_other_sites_cannot_post_or_delete(
    client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey, has_key: bool
) -> None:
    """A key says who calls, and not which page sent the request."""
    key = make_key() if has_key else {}
    for site in ("cross-site", "same-site"):
        headers = key | {"Sec-Fetch-Site": site}
        assert is_problem(client.post("/v1/jobs", json=body(), headers=headers), 403)
        assert is_problem(client.delete("/v1/jobs/x", headers=headers), 403)
    assert client.post("/v1/jobs", json=body(), headers=key | {"Sec-Fetch-Site": "same-origin"}).status_code == 202


def test_models_show_what_workers_announced_and_who_serves_it(client: httpx2.Client, worker: ToyWorker) -> None:
    listed = client.get("/v1/models").json()
    assert (listed["object"], [each["id"] for each in listed["data"]]) == ("list", ["demo", "demo-uncond"])
    model = client.get("/v1/models/demo").json()
    assert model in listed["data"]
    assert (model["object"], model["workers"], model["image_size"]) == ("model", ["cpu-0"], 64)
    assert model["classes"][4] == {"index": 4, "name": "torus"}
    assert model["limits"]["guidance_scale"] == {"min": 0, "max": 50}
    assert model["defaults"]["steps"] == 25
    assert is_problem(client.get("/v1/models/none"), 404)
    etag = client.get("/v1/models").headers["etag"]
    assert client.get("/v1/models", headers={"If-None-Match": etag}).status_code == 304
    (shown,) = client.get("/v1/workers").json()["data"]
    assert (shown["name"], shown["row_shapes"], shown["step_ms"]["demo"]["base"]["16"]) == ("cpu-0", [4, 16], 80)


def test_pipeline_without_a_worker_is_reported_everywhere(client: httpx2.Client, worker: ToyWorker) -> None:
    assert client.get("/readyz?workers=1").json() == {"status": "ok"}
    assert client.get("/healthz").json()["status"] == "ok"
    worker.stop()
    assert is_problem(client.get("/readyz?workers=1"), 503)
    assert client.get("/readyz").status_code == 200
    health = client.get("/healthz").json()
    assert (health["status"], health["pipelines"][0]) == ("degraded", {"id": "demo", "workers": [], "queued": 0})
    assert client.get("/v1/models/demo").json()["workers"] == []


def test_metrics_merge_the_queue_and_the_workers(client: httpx2.Client, worker: ToyWorker) -> None:
    client.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"})
    response = client.get("/metrics")
    lines = response.text.splitlines()
    assert response.headers["content-type"].startswith("text/plain")
    assert 'adm_toy_steps_total{worker="cpu-0"} 3.0' in lines
    assert 'adm_jobs{status="completed"} 1.0' in lines
    assert 'adm_queue_jobs{pipeline="demo",priority="normal"} 0.0' in lines
    assert 'adm_queue_work_seconds{pipeline="demo",priority="high"} 0.0' in lines
    assert any(line.startswith('adm_worker_heartbeat_age_seconds{worker="cpu-0"}') for line in lines)
    assert any(
        line.startswith('adm_http_requests_total{method="POST",route="/v1/jobs",status="200"}') for line in lines
    )
    types = [line for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types))


def test_metrics_distinguish_what_a_pipeline_has_queued_from_what_its_workers_have(
    client: httpx2.Client, fleet: ToyWorker
) -> None:
    for index in range(3):  # the first is claimed
        client.post("/v1/jobs", json=body(model=("demo", "demo", "demo-uncond")[index], n=64, upsample=False))
        while index == 0 and client.get("/v1/jobs").json()["data"][0]["status"] != "in_progress":
            time.sleep(0.01)
    lines = client.get("/metrics").text.splitlines()
    for name in ("demo", "demo-uncond"):  # 64 images of 25 steps, at 5 ms a row step
        assert f'adm_queue_work_seconds{{pipeline="{name}",priority="normal"}} 8.0' in lines
        assert f'adm_pipeline_queued_seconds{{pipeline="{name}"}} 16.0' in lines


def test_page_and_document_have_routes_of_their_own_in_metrics(client: httpx2.Client) -> None:
    for path in ("/openapi.json", "/static/js/main.js", "/"):
        client.get(path)
    text = client.get("/metrics").text
    for route in ("/openapi.json", "/static/{name:path}", "/"):
        assert f'adm_http_requests_total{{method="GET",route="{route}",status="200"}}' in text


def test_page_files_and_docs_come_from_here_under_a_policy(client: httpx2.Client) -> None:
    docs = client.get("/docs")
    assert "'self'" in docs.headers["content-security-policy"]
    for url in re.findall(r'(?:src|href)="([^"]+)"', docs.text):
        assert url.startswith("docs/")  # relative: a proxy may publish the service under a path
        assert client.get(f"/{url}").status_code == 200
    assert "http" not in docs.text
    assert client.get("/livez").headers["content-security-policy"].startswith("default-src 'none'")
    assert client.get("/openapi.json").json()["openapi"].startswith("3.")


@pytest.mark.process
@pytest.mark.slow
def test_redis_down_is_503_and_recovery_needs_no_restart(tmp_path: Path) -> None:
    server = RedisServer(Path("/tmp") / f"adm-{tmp_path.name[-20:]}-{time.time_ns() % 10**6}")
    server.folder.mkdir()
    server.start()
    settings = Settings(data=tmp_path, redis_url=server.address, lease_seconds=10)
    with running_service(settings) as (address, _, _), httpx2.Client(base_url=address, timeout=60) as client:
        own = server.client()
        worker = ToyWorker(own, settings)
        job_id = client.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"}).json()["id"]
        worker.hold()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.post, "/v1/jobs", json=body(), headers={"Prefer": "wait=8"})
            while len(client.get("/v1/jobs").json()["data"]) < 2:
                pass
            server.stop()
            response = waiting.result()
        assert response.status_code == 202, "it is queued; an error would have it posted twice"
        assert response.headers["location"] == f"/v1/jobs/{response.json()['id']}"
        worker.release()
        for method, path in (("GET", f"/v1/jobs/{job_id}"), ("GET", "/readyz"), ("GET", f"/v1/jobs/{job_id}/events")):
            response = client.request(method, path)
            assert is_problem(response, 503)
            assert int(response.headers["retry-after"]) > 0
        assert is_problem(client.post("/v1/jobs", json=body()), 503)
        assert client.get("/livez").status_code == 200
        assert "adm_redis_up 0.0" in client.get("/metrics").text
        server.start()
        assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "completed"
        again = client.post("/v1/jobs", json=body(), headers={"Prefer": "wait=30"})
        assert again.json()["status"] == "completed"
        worker.stop()
        own.close()
    server.stop()


@pytest.mark.parametrize("refuse", REFUSALS)
def test_redis_that_takes_no_writes_is_503_for_what_writes_and_still_read(
    client: httpx2.Client, fleet: ToyWorker, redis: Redis, redis_server: RedisServer, refuse: Refusal
) -> None:
    end = refuse(redis, redis_server.folder)
    refused, listed = client.post("/v1/jobs", json=body()), client.get("/v1/jobs")
    end()
    assert is_problem(refused, 503)
    assert "Retry-After" in refused.headers
    assert listed.status_code == 200


@pytest.mark.process
@pytest.mark.slow
def test_logs_carry_request_and_job_ids_and_no_bodies(service_settings: Settings, worker: ToyWorker) -> None:
    with (
        running_service(service_settings, ADM_LOG_LEVEL="debug") as (address, _, lines),
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        response = client.post("/v1/jobs", json=body(user="somebody-secret"), headers={"X-Request-ID": "r-1"})
        job_id = response.json()["id"]
        client.get(f"/v1/jobs/{job_id}", headers={"X-Request-ID": "r-2"})
    entries = {each.get("request_id"): each for each in map(json.loads, lines)}
    assert entries["r-1"]["job_id"] == entries["r-2"]["job_id"] == job_id
    assert (entries["r-1"]["status"], entries["r-1"]["method"]) == (202, "POST")
    assert "somebody-secret" not in "".join(lines)


@pytest.mark.process
@pytest.mark.slow
def test_polls_are_logged_at_info_only_when_they_fail(service_settings: Settings, worker: ToyWorker) -> None:
    with (
        running_service(service_settings) as (address, _, lines),
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        job_id = client.post("/v1/jobs", json=body()).json()["id"]
        for path in ("/v1/models", "/v1/workers", "/v1/jobs", f"/v1/jobs/{job_id}"):
            assert client.get(path).status_code == 200
        assert client.get("/v1/jobs/none").status_code == 404
        assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    logged = [(each["method"], each["status"]) for each in map(json.loads, lines) if each["event"] == "request"]
    assert logged == [("POST", 202), ("GET", 404), ("DELETE", 204)]


@pytest.mark.process
@pytest.mark.slow
def test_files_of_the_page_are_logged_at_info_only_when_they_fail(service_settings: Settings) -> None:
    with (
        running_service(service_settings) as (address, _, lines),
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        for path in ("/static/icon.svg", "/static/js/api.js", "/docs/init.js"):
            assert client.get(path).status_code == 200
        assert client.get("/").status_code == 200
        assert client.get("/static/none.js").status_code == 404
    logged = [(each["path"], each["status"]) for each in map(json.loads, lines) if each["event"] == "request"]
    assert logged == [("/", 200), ("/static/none.js", 404)]


@pytest.mark.process
@pytest.mark.slow
def test_service_stops_at_once_although_somebody_waits(service_settings: Settings, fleet: ToyWorker) -> None:
    with (
        running_service(service_settings) as (address, process, _),
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        job_id = client.post("/v1/jobs", json=body()).json()["id"]
        with client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
            chunks = stream.iter_raw()
            next(chunks)
            process.terminate()
            for _ in chunks:  # until the service ends it: one that is cut after STOP_SECONDS would raise
                pass
        assert process.wait(300) == -signal.SIGTERM  # uvicorn stops in order, then passes the signal on


@pytest.mark.process
@pytest.mark.slow
def test_waiting_calls_are_answered_when_the_service_stops(service_settings: Settings, fleet: ToyWorker) -> None:
    with (
        running_service(service_settings) as (address, process, _),
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        job_id = client.post("/v1/jobs", json=body()).json()["id"]
        with ThreadPoolExecutor(2) as pool:
            # neither client waits for as long as it asked the service to
            got = pool.submit(client.get, f"/v1/jobs/{job_id}?wait=60", timeout=50)
            posted = pool.submit(client.post, "/v1/jobs", json=body(), headers={"Prefer": "wait=60"}, timeout=50)
            while len(client.get("/v1/jobs").json()["data"]) < 2 or in_progress(client) < 2:
                time.sleep(0.01)
            process.terminate()
            assert (got.result().status_code, posted.result().status_code) == (200, 202)
            assert got.result().json()["status"] == "in_progress"


def refused(settings: Settings, **variables: str) -> str:
    command = [sys.executable, "-m", "service.main"]
    environment = {"PATH": "/usr/bin", "ADM_DATA": str(settings.data), **variables}
    result = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.slow
def test_busy_port_is_one_line_that_names_the_variable(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        assert "ADM_PORT" in refused(settings, ADM_PORT=str(holder.getsockname()[1]))


@pytest.mark.slow
def test_other_addresses_than_loopback_need_a_key_or_the_permission(redis: Redis, settings: Settings) -> None:
    line = refused(settings, ADM_HOST="0.0.0.0", ADM_REDIS_URL=str(settings.redis_url))
    assert "adm keys create" in line
    assert "ADM_ALLOW_ANONYMOUS" in line


@pytest.mark.process
@pytest.mark.slow
def test_service_stays_below_120_mb_and_never_imports_torch(
    service_settings: Settings, worker: ToyWorker, redis: Redis
) -> None:
    with (
        running_service(service_settings, start_cold) as (address, process, _),
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: client.post("/v1/jobs", json=body()), range(100)))
        client.get("/docs")
        client.get("/openapi.json")
        process_files = Path("/proc") / str(process.pid)
        kib = re.search(r"VmRSS:\s+(\d+) kB", (process_files / "status").read_text())
        assert kib is not None
        assert int(kib[1]) * 1024 < 120e6
        assert "torch" not in (process_files / "maps").read_text()
