"""Keys at a real service: when they are needed, what each role opens, and how the service answers wrong keys."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx2
import pytest
from redis import Redis

from jobs.callers.keyring import IN_FORCE_SECONDS, NEEDED, KeyStore
from jobs.contract.caller import Role
from jobs.redis import keys
from jobs.settings import Settings
from tests.jobs.samples import png
from tests.service.conftest import MakeKey, ToyWorker, body, running_service
from tests.service.test_jobs import is_problem
from tests.waiting import eventually

PAGES = ("/", "/runs", "/docs", "/docs/swagger-ui.css", "/static/js/api.js", "/openapi.json")
OPEN = (*PAGES, "/livez", "/readyz", "/healthz")
RUNS = ("/v1/runs", "/v1/runs/x", "/v1/runs/x/previews/y")
CLOSED = ("/v1/jobs", "/v1/jobs/x", "/v1/jobs/x/events", "/v1/models", "/v1/workers", "/metrics", "/v1/nothing", *RUNS)
WRONG = ("", "Bearer", "Bearer ", "Bearer x", "Basic YTpi", "Bearer adm_\x00", "Bearer \xff\xfe", "Bearer a b")
SPELLINGS = ("/static/../v1/jobs", "/docs/../v1/jobs", "//v1/jobs", "/v1/jobs/", "/v1/./jobs", "/V1/JOBS")


def test_service_that_ran_without_keys_requires_one_as_soon_as_the_first_exists(
    client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey
) -> None:
    posted = client.post("/v1/jobs", json=body()).json()["id"]
    headers = make_key()
    for path in CLOSED:
        answer = client.get(path)
        assert is_problem(answer, 401), path
        assert answer.headers["www-authenticate"] == 'Bearer realm="adm"'
    assert is_problem(client.post("/v1/jobs", json=body()), 401)
    assert is_problem(client.delete(f"/v1/jobs/{posted}"), 401)
    assert client.post("/v1/jobs", json=body(), headers=headers).status_code == 202
    assert client.get("/v1/models", headers=headers).status_code == 200


def test_strangers_reach_the_page_the_document_and_the_probes(client: httpx2.Client, make_key: MakeKey) -> None:
    make_key()
    for path in OPEN:
        assert client.get(path).status_code in (200, 503), path


def test_revoking_the_last_key_does_not_open_the_service_again(
    client: httpx2.Client, redis: Redis, make_key: MakeKey
) -> None:
    headers = make_key("ann")
    assert client.get("/v1/jobs", headers=headers).status_code == 200
    KeyStore(redis).revoke("ann")
    assert is_problem(client.get("/v1/jobs", headers=headers), 401)
    assert is_problem(client.get("/v1/jobs"), 401)


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/workers/changes", "/v1/files"])
def test_call_whose_key_is_revoked_while_its_body_arrives_is_401(
    client: httpx2.Client, redis: Redis, make_key: MakeKey, path: str
) -> None:
    headers = make_key("ann", Role.OPERATOR)
    content = {"/v1/files": png(0), "/v1/jobs": json.dumps(body()).encode()}.get(
        path, b'{"action": "load", "model": "demo"}'
    )

    def slowly() -> Iterator[bytes]:
        yield content[:5]
        KeyStore(redis).revoke("ann")  # returns when the change is in force
        yield content[5:]

    kind = {"Content-Type": "image/png" if path == "/v1/files" else "application/json"}
    assert is_problem(client.post(path, content=slowly(), headers=headers | kind), 401)


def test_rotated_key_counts_at_once(client: httpx2.Client, redis: Redis, make_key: MakeKey) -> None:
    old = make_key("ann")
    assert client.get("/v1/jobs", headers=old).status_code == 200
    new = KeyStore(redis).rotate("ann").key
    assert is_problem(client.get("/v1/jobs", headers=old), 401)
    assert client.get("/v1/jobs", headers={"Authorization": f"bearer  {new}"}).status_code == 200


@pytest.mark.parametrize(
    ("role", "opened"),
    [
        (Role.USER, {"/v1/jobs", "/v1/models"}),
        (Role.OPERATOR, {"/v1/jobs", "/v1/models", "/v1/workers", "/metrics"}),
        (Role.METRICS, {"/metrics"}),
    ],
)
def test_each_role_opens_its_paths(client: httpx2.Client, make_key: MakeKey, role: Role, opened: set[str]) -> None:
    headers = make_key(role=role)
    for path in ("/v1/jobs", "/v1/models", "/v1/workers", "/metrics", *RUNS):
        answer = client.get(path, headers=headers)
        if role is Role.OPERATOR and path.startswith("/v1/runs"):
            assert is_problem(answer, 404)  # no folder of training runs is set
        else:
            assert answer.status_code == (200 if path in opened else 403), path
    assert client.post("/v1/jobs", json=body(), headers=headers).status_code == (403 if role is Role.METRICS else 503)


@pytest.mark.parametrize("given", [*WRONG, "Bearer " + "k" * 20_000])
def test_wrong_key_is_401_whatever_it_is_made_of_and_is_not_shown(
    client: httpx2.Client, make_key: MakeKey, given: str
) -> None:
    make_key()
    host, port = client.base_url.host, client.base_url.port or 0
    with socket.create_connection((host, port)) as caller:
        head = f"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: {given}\r\n\r\n"
        caller.sendall(head.encode("latin-1"))
        answer = b"".join(iter(lambda: caller.recv(65536), b""))
    assert answer.split()[1] in ((b"400",) if "\x00" in given else (b"401",))
    assert len(answer) < 1500
    assert b"kkk" not in answer


def test_several_authorization_headers_are_refused(client: httpx2.Client, make_key: MakeKey) -> None:
    given = make_key()["Authorization"]
    both = [("Authorization", given), ("Authorization", given)]
    assert is_problem(client.get("/v1/jobs", headers=both), 400)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "PATCH", "TRACE"])
def test_no_method_goes_round_the_key(client: httpx2.Client, make_key: MakeKey, method: str) -> None:
    make_key()
    assert client.request(method, "/v1/jobs").status_code == 401


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_of_a_path_goes_round_the_key(client: httpx2.Client, make_key: MakeKey, path: str) -> None:
    make_key()
    host, port = client.base_url.host, client.base_url.port or 0
    with socket.create_connection((host, port)) as caller:
        caller.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert caller.recv(99).split()[1] in (b"401", b"404")


def test_damaged_keys_close_the_service(client: httpx2.Client, redis: Redis) -> None:
    redis.set(keys.API_KEYS, "garbage")
    redis.set(keys.API_KEYS_VERSION, "2")
    while client.get("/v1/jobs").status_code == 200:  # until the next look
        pass
    assert is_problem(client.get("/v1/jobs"), 401)


def test_no_request_that_begins_after_a_change_is_judged_by_the_keys_before(
    client: httpx2.Client, redis: Redis, make_key: MakeKey
) -> None:
    """Four clients call all the time, while a first key is made, then a second caller's, and the first is revoked."""
    asked: list[tuple[str, float, float, int]] = []  # who, from when, until when, and the status
    ended = Event()
    headers: dict[str, dict[str, str]] = {"nobody": {}}

    def ask(name: str) -> None:
        with httpx2.Client(base_url=client.base_url, timeout=60) as own:
            while not ended.is_set():
                began = time.monotonic()
                status = own.get("/v1/jobs", headers=headers[name]).status_code
                asked.append((name, began, time.monotonic(), status))

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, "nobody") for _ in range(2)]
        headers["ann"] = make_key("ann")
        made = time.monotonic()
        asking += [pool.submit(ask, "ann") for _ in range(2)]
        make_key("bob")
        while not any(name == "ann" for name, _, _, _ in asked):
            time.sleep(0.01)
        revoking = time.monotonic()
        KeyStore(redis).revoke("ann")
        revoked = time.monotonic()
        while {name for name, began, _, _ in asked if began > revoked + IN_FORCE_SECONDS} < {"nobody", "ann"}:
            time.sleep(0.01)
        ended.set()
    for each in asking:
        each.result()
    assert {status for name, began, _, status in asked if name == "nobody" and began > made} == {401}
    assert {status for name, _, over, status in asked if name == "ann" and over < revoking} == {200}
    assert {status for name, began, _, status in asked if name == "ann" and began > revoked} == {401}


def test_answers_may_not_be_cached_for_another_caller(client: httpx2.Client, make_key: MakeKey) -> None:
    headers = make_key()
    assert client.get("/v1/jobs", headers=headers).headers["vary"] == "Authorization"
    assert "vary" not in client.get("/livez").headers


@pytest.mark.process
@pytest.mark.slow
def test_service_beyond_loopback_serves_nobody_once_redis_has_lost_its_keys(
    redis: Redis, service_settings: Settings, make_key: MakeKey
) -> None:
    headers = make_key()
    with running_service(service_settings, ADM_HOST="0.0.0.0") as (address, _, _):
        assert httpx2.get(f"{address}/v1/jobs", headers=headers, timeout=60).status_code == 200
        redis.flushall()
        while httpx2.get(f"{address}/v1/jobs", headers=headers, timeout=60).status_code == 200:
            pass
        assert httpx2.get(f"{address}/v1/jobs", timeout=60).status_code == 401


@pytest.mark.process
@pytest.mark.slow
def test_service_stays_closed_once_redis_has_lost_its_keys_also_after_a_restart(
    redis: Redis, service_settings: Settings, make_key: MakeKey
) -> None:
    make_key()
    with running_service(service_settings) as (address, _, lines):
        assert httpx2.get(f"{address}/v1/jobs", timeout=60).status_code == 401
        redis.flushall()

        def is_loss_found() -> bool:
            assert httpx2.get(f"{address}/v1/jobs", timeout=60).status_code == 401
            return any('"event": "keys_lost"' in line for line in lines)

        eventually(is_loss_found, "the service reports that Redis has lost the keys")
        assert httpx2.get(f"{address}/v1/jobs", timeout=60).status_code == 401
    with running_service(service_settings) as (address, _, lines):
        assert httpx2.get(f"{address}/v1/jobs", timeout=60).status_code == 401
        headers = make_key("new")
        assert httpx2.get(f"{address}/v1/jobs", headers=headers, timeout=60).status_code == 200
    assert any('"event": "keys_lost"' in line for line in lines)  # all lines have been read once the service has ended


@pytest.mark.process
@pytest.mark.slow
def test_service_that_starts_reports_no_keys_as_lost_that_redis_has(
    redis: Redis, service_settings: Settings, make_key: MakeKey
) -> None:
    """The line names the file to remove to serve anybody, which nobody should do while keys exist."""
    headers = make_key()
    (service_settings.data / NEEDED).touch()
    with running_service(service_settings) as (address, _, lines):
        assert httpx2.get(f"{address}/v1/jobs", headers=headers, timeout=60).status_code == 200
    assert any('"event": "keys_read"' in line for line in lines)
    assert not any('"event": "keys_lost"' in line for line in lines)


@pytest.mark.process
@pytest.mark.slow
def test_permission_for_anybody_ends_with_the_first_key(
    redis: Redis, service_settings: Settings, make_key: MakeKey
) -> None:
    with running_service(service_settings, ADM_HOST="0.0.0.0", ADM_ALLOW_ANONYMOUS="yes") as (address, _, _):
        assert httpx2.get(f"{address}/v1/jobs", timeout=60).status_code == 200
        make_key()
        assert httpx2.get(f"{address}/v1/jobs", timeout=60).status_code == 401


@pytest.mark.process
@pytest.mark.slow
def test_keys_are_in_no_log_line(redis: Redis, service_settings: Settings, make_key: MakeKey) -> None:
    headers = make_key()
    key = headers["Authorization"].removeprefix("Bearer ")
    with running_service(service_settings, ADM_LOG_LEVEL="debug") as (address, _, lines):
        for given in (headers, {"Authorization": f"Bearer {key}x"}, {"Authorization": key}):
            httpx2.get(f"{address}/v1/jobs", headers=given, timeout=60)
            httpx2.post(f"{address}/v1/jobs", json=body(), headers=given, timeout=60)
        assert (
            httpx2.get(f"{address}/v1/jobs/{key}", headers=headers | {"X-Request-ID": key}, timeout=60).headers[
                "x-request-id"
            ]
            != key
        )
    assert any(json.loads(each).get("caller") == key[4:16] for each in lines)
    assert key[17:] not in "".join(lines)
