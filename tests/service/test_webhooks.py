"""Webhooks, sent to real servers on this machine and verified there by the package of Standard Webhooks."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from threading import Event, Thread
from typing import Any, NamedTuple

import httpx2
import pytest
from redis import Redis
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError
from typer.testing import CliRunner

from cli.main import app
from jobs.queue.job_queue import JobQueue
from jobs.queue.webhooks import Webhooks, enqueue
from jobs.redis import keys
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from service.metrics import Metrics
from service.webhooks import MOST_AT_ONCE, MOST_PER_HOST, WebhookSender
from tests.service.conftest import MakeKey, ToyWorker, body, running_service
from tests.waiting import eventually

OLD, NEW = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
SIGNED = {"ADM_WEBHOOK_SECRET": f"{NEW},{OLD}"}
LOCAL = {"ADM_WEBHOOK_NETWORKS": "127.0.0.0/8"}


class Received(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes

    def verified(self, secret: str) -> dict[str, Any]:
        found: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return found


class Receiver:
    """A server that records each post, and answers it by its path in `answers`, or with 204."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.received: Queue[Received] = Queue()
        self.answers: dict[str, tuple[int, dict[str, str]]] = {}
        self.open = Event()  # answers wait for it
        self.open.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.put(Received(self.path, dict(self.headers), content))
                receiver.open.wait()
                status, headers = receiver.answers.get(self.path, (204, {}))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://{host}:{self.port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def get(self) -> Received:
        return self.received.get(timeout=300)

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def address(service_settings: Settings) -> Iterator[str]:
    """A service that may send to this machine."""
    with running_service(service_settings, **SIGNED, **LOCAL) as (address, _, _):
        yield address


@pytest.fixture
def webhooks(redis: Redis) -> Webhooks:
    return Webhooks(redis)


def post(client: httpx2.Client, url: str, **fields: Any) -> str:
    answer = client.post("/v1/jobs", json=body(webhook_url=url, **fields))
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def due_now(redis: Redis) -> None:
    for each in Webhooks(redis).pending():
        redis.zadd(keys.WEBHOOKS, {each.id: 0}, xx=True)


def test_completed_job_is_posted_once_signed_with_every_secret(
    client: httpx2.Client, fleet: ToyWorker, receiver: Receiver, webhooks: Webhooks
) -> None:
    job_id = post(client, f"{receiver.url}/hook?a=b", metadata={"order": "7"})
    fleet.release()
    got = receiver.get()
    event = got.verified(NEW)
    assert event == got.verified(OLD)
    assert (got.path, event["type"]) == ("/hook?a=b", "job.completed")
    assert event["data"] == client.get(f"/v1/jobs/{job_id}").json()
    with pytest.raises(WebhookVerificationError):
        got.verified("whsec_" + "A" * 32)
    eventually(lambda: webhooks.counts() == (0, 0), "the delivery is over")
    assert receiver.received.empty()


@pytest.mark.slow
def test_cancelled_and_expired_jobs_are_posted_too(
    client: httpx2.Client, fleet: ToyWorker, receiver: Receiver, worker: ToyWorker
) -> None:
    client.post(f"/v1/jobs/{post(client, receiver.url)}/cancel")
    assert receiver.get().verified(NEW)["type"] == "job.cancelled"
    worker.stop()
    post(client, receiver.url, expires_in=1)
    assert receiver.get().verified(NEW)["type"] == "job.expired"


def test_failed_delivery_is_repeated_under_its_id_until_it_is_taken(
    client: httpx2.Client, worker: ToyWorker, receiver: Receiver, webhooks: Webhooks, redis: Redis
) -> None:
    receiver.answers["/"] = (500, {})
    post(client, f"{receiver.url}/")
    first = receiver.get()
    eventually(lambda: [each.error for each in webhooks.pending()] == ["the receiver answers 500"], "it has failed")
    del receiver.answers["/"]
    due_now(redis)
    second = receiver.get()
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
    assert second.verified(NEW)["type"] == "job.completed"
    eventually(lambda: webhooks.counts() == (0, 0), "the delivery is over")
    metrics = client.get("/metrics").text
    assert 'adm_webhook_attempts_total{event="job.completed",outcome="retried"}' in metrics
    assert 'adm_webhooks{state="dead"} 0' in metrics


def test_receiver_that_answers_gone_gets_no_other_try_unless_an_operator_requests_one(
    client: httpx2.Client, worker: ToyWorker, receiver: Receiver, webhooks: Webhooks, service_settings: Settings
) -> None:
    receiver.answers["/"] = (410, {})
    post(client, f"{receiver.url}/")
    receiver.get()
    eventually(lambda: webhooks.counts() == (0, 1), "it is given up")
    environment = {"ADM_REDIS_URL": service_settings.redis_url, "ADM_DATA": str(service_settings.data)}
    listed = CliRunner().invoke(app, ["webhooks", "list"], env=environment)
    (dead,) = webhooks.dead()
    assert (listed.exit_code, listed.output) == (0, f"{dead.id}  job.completed  1 attempt  the receiver answers 410\n")
    assert CliRunner().invoke(app, ["webhooks", "retry"], env=environment).exit_code == 2
    assert CliRunner().invoke(app, ["webhooks", "retry", "msg_none"], env=environment).exit_code == 1
    del receiver.answers["/"]
    assert CliRunner().invoke(app, ["webhooks", "retry", dead.id], env=environment).output == "1 will be tried again\n"
    assert receiver.get().verified(NEW)["type"] == "job.completed"


def test_busy_receiver_is_tried_again_after_the_time_in_its_retry_after(
    client: httpx2.Client, worker: ToyWorker, receiver: Receiver, webhooks: Webhooks, redis: Redis
) -> None:
    receiver.answers["/"] = (503, {"Retry-After": "5000"})
    post(client, f"{receiver.url}/")
    eventually(lambda: bool(webhooks.pending() and webhooks.pending()[0].error), "it has failed")
    assert redis.zscore(keys.WEBHOOKS, webhooks.pending()[0].id) == pytest.approx(webhooks.now() + 5000, abs=60)


def test_redirect_that_keeps_the_post_is_followed(client: httpx2.Client, worker: ToyWorker, receiver: Receiver) -> None:
    receiver.answers["/old"] = (308, {"Location": "/new"})
    post(client, f"{receiver.url}/old")
    assert [receiver.get().path, receiver.get().path] == ["/old", "/new"]


@pytest.mark.parametrize(
    ("status", "location", "error"),
    [
        (307, "http://169.254.169.254/latest/meta-data", "resolves to an address that is not allowed for webhooks"),
        (308, "http://10.0.0.1/", "resolves to an address that is not allowed for webhooks"),
        (307, "http://[::1]/", "resolves to an address that is not allowed for webhooks"),
        (307, "http://2852039166/", "resolves to an address that is not allowed for webhooks"),  # 169.254.169.254
        (307, "file:///etc/passwd", "not an address for webhooks: scheme 'file'"),
        (307, "gopher://127.0.0.1/", "not an address for webhooks: scheme 'gopher'"),
        (307, "http://user:secret@127.0.0.1/", "not an address for webhooks"),
        (307, "http://[", "redirects to an invalid URL"),
        (302, "http://127.0.0.1/", "the receiver answers 302"),
        (307, "/", "redirects more than 3 times"),
    ],
)
def test_redirect_elsewhere_is_not_followed(
    client: httpx2.Client,
    worker: ToyWorker,
    receiver: Receiver,
    webhooks: Webhooks,
    status: int,
    location: str,
    error: str,
) -> None:
    receiver.answers["/"] = (status, {"Location": location})
    post(client, f"{receiver.url}/")
    eventually(lambda: bool(webhooks.pending() and webhooks.pending()[0].error), "it has failed")
    assert error in webhooks.pending()[0].error


@pytest.mark.slow
def test_slow_receiver_delays_no_other(client: httpx2.Client, fleet: ToyWorker, receiver: Receiver) -> None:
    slow = Receiver("127.0.0.2")
    slow.open.clear()
    try:
        for _ in range(3 * MOST_PER_HOST):
            post(client, slow.url)
        fleet.release()
        eventually(lambda: slow.received.qsize() == MOST_PER_HOST, "it has as many as it may")
        post(client, receiver.url)
        assert receiver.get().verified(NEW)["type"] == "job.completed"
        assert slow.received.qsize() == MOST_PER_HOST
    finally:
        slow.close()


@pytest.mark.slow
def test_slow_receivers_of_one_caller_delay_no_other_caller(
    client: httpx2.Client, fleet: ToyWorker, receiver: Receiver, make_key: MakeKey, redis: Redis
) -> None:
    """One caller has more hosts than a service sends at once, and none of them answers."""
    many, one = make_key("many"), make_key("one")
    slow = Receiver("0.0.0.0")
    slow.open.clear()
    hosts = [f"http://127.0.1.{number}:{slow.port}" for number in range(2 * MOST_AT_ONCE)]
    try:
        for first in range(0, len(hosts), 32):
            items = [body(webhook_url=url) for url in hosts[first : first + 32]]
            assert client.post("/v1/jobs", json={"items": items}, headers=many).status_code == 202
        fleet.release()
        eventually(lambda: slow.received.qsize() == Settings().webhooks_per_caller, "it has as many as it may")
        assert client.post("/v1/jobs", json=body(webhook_url=receiver.url), headers=one).status_code == 202
        assert receiver.get().verified(NEW)["type"] == "job.completed"
        assert slow.received.qsize() == Settings().webhooks_per_caller
    finally:
        slow.close()
        redis.delete(keys.WEBHOOKS)


def test_delivery_to_an_invalid_url_fails_alone(
    client: httpx2.Client, worker: ToyWorker, receiver: Receiver, webhooks: Webhooks, redis: Redis
) -> None:
    with redis.pipeline() as pipe:
        for number, url in enumerate(("http://1.2.3.999/", "http://[/", "http://xn--a/", "http://axn--/", "")):
            enqueue(pipe, f"{number}", "j", "completed", url, webhooks.now() - 1)
        pipe.execute()
    post(client, receiver.url)
    assert receiver.get().verified(NEW)["type"] == "job.completed"
    eventually(lambda: [bool(each.error) for each in webhooks.pending()] == [True] * 5, "the others have failed")


def test_deliveries_above_a_callers_share_wait_longer_the_more_there_are(
    redis: Redis, service_settings: Settings
) -> None:
    """Otherwise each look would find a thousand deliveries of one caller, and never those behind them."""
    settings = service_settings.model_copy(update={"webhooks_per_caller": 2})
    webhooks = Webhooks(redis)
    sender = WebhookSender(webhooks, JobQueue(redis, settings, ImageStore(settings.store_address)), settings, Metrics())
    with redis.pipeline() as pipe:
        for number in range(7):
            enqueue(pipe, f"{number}", "j", "completed", f"http://h{number}.example/", number, "many")
        enqueue(pipe, "8", "j", "completed", "http://other.example/", 8, "one")
        pipe.execute()
    assert [each.id for each in webhooks.claim(sender._choose)] == ["msg_0", "msg_1", "msg_8"]  # nothing is posted
    now = webhooks.now()
    waits = [round(float(redis.zscore(keys.WEBHOOKS, f"msg_{each}")) - now) for each in range(2, 7)]  # type: ignore[arg-type] # redis-py's union with an awaitable
    assert waits == [2, 2, 4, 4, 6]


@pytest.mark.process
@pytest.mark.slow
def test_job_that_ends_while_no_service_runs_is_posted_once_when_two_start(
    service_settings: Settings, worker: ToyWorker, receiver: Receiver, webhooks: Webhooks
) -> None:
    worker.hold()
    with (
        running_service(service_settings, **SIGNED, **LOCAL) as (address, _, _),
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        eventually(lambda: bool(client.get("/v1/workers").json()["data"]), "the worker is known")
        job_id = post(client, receiver.url)
    worker.release()
    eventually(lambda: webhooks.counts() == (1, 0), "the job has ended")
    with (
        running_service(service_settings, **SIGNED, **LOCAL),
        running_service(service_settings, **SIGNED, **LOCAL),
    ):
        assert receiver.get().verified(OLD)["data"]["id"] == job_id
        eventually(lambda: webhooks.counts() == (0, 0), "the delivery is over")
    assert receiver.received.empty()


def test_job_that_was_deleted_is_posted_with_what_is_known_of_it(
    client: httpx2.Client, fleet: ToyWorker, receiver: Receiver, webhooks: Webhooks, redis: Redis
) -> None:
    receiver.answers["/"] = (500, {})
    job_id = post(client, f"{receiver.url}/")
    fleet.release()
    receiver.get()
    eventually(lambda: bool(webhooks.pending()[0].error), "it has failed")
    client.delete(f"/v1/jobs/{job_id}")
    due_now(redis)
    assert receiver.get().verified(NEW)["data"] == {
        "id": job_id, "object": "job", "status": "completed", "deleted": True
    }  # fmt: skip
