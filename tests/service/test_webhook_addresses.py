"""Addresses without webhooks: a service with the defaults, which may send only to public addresses."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from redis import Redis

from jobs.queue.job_queue import JobQueue
from jobs.queue.webhooks import Delivery, Webhooks
from jobs.settings import Settings
from jobs.storage.images import ImageStore
from service.metrics import Metrics
from service.webhooks import TargetError, WebhookSender
from tests.service.conftest import ToyWorker, body, running_service
from tests.service.test_jobs import is_problem
from tests.service.test_webhooks import SIGNED, Receiver, post
from tests.waiting import eventually


@pytest.fixture(scope="module")
def address(service_settings: Settings) -> Iterator[str]:
    with running_service(service_settings, **SIGNED) as (address, _, _):
        yield address


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def webhooks(redis: Redis) -> Webhooks:
    return Webhooks(redis)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://0.0.0.0/", "http://[::1]:80/", "http://[::ffff:127.0.0.1]/", "http://10.0.0.1",
        "http://169.254.169.254/latest/meta-data/", "http://[64:ff9b::7f00:1]/", "http://192.0.0.192/",
        "http://[fec0::1]/", "http://[::ffff:0:7f00:1]/", "http://[64:ff9b:1:a00:0:100:808:808]/", "http://[3fff::1]/",
        "http://[5f00::1]/", "https://192.168.0.1/x", "http://1.2.3.999/", "http://8.8.8.08/", "http://0177.0.0.1./",
        "http://2130706433/", "http://0x7f.1/", "http://017700000001/", "http://127.1/", "http://a.example.0X7F/",
        "http://a.example:99999/", "ftp://a.example/", "file:///etc/passwd", "http://", "http://u:p@a.example/",
        "http://8.8.8.8:0/", "http://a..example/", "http://.example/", "http://a.example../",
        "http://a.example/\r\nX: y", "//a.example", "a.example", "http://a.example/" + "x" * 1024,
    ],
)  # fmt: skip
def test_address_that_is_never_sent_to_is_refused_at_once(client: httpx2.Client, worker: ToyWorker, url: str) -> None:
    assert is_problem(client.post("/v1/jobs", json=body(webhook_url=url)), 422, "/webhook_url")


@pytest.mark.parametrize("host", ["localhost"])
def test_name_that_resolves_to_this_machine_is_not_sent_to(
    client: httpx2.Client, worker: ToyWorker, receiver: Receiver, webhooks: Webhooks, host: str
) -> None:
    post(client, f"http://{host}:{receiver.port}/")
    eventually(lambda: bool(webhooks.pending() and webhooks.pending()[0].error), "it has failed")
    assert "resolves to an address that is not allowed for webhooks" in webhooks.pending()[0].error
    assert receiver.received.empty()


@pytest.fixture
def sender(redis: Redis, service_settings: Settings) -> WebhookSender:
    settings = service_settings.model_copy(update={"webhook_networks": ("127.0.0.1/32",)})
    queue = JobQueue(redis, settings, ImageStore(settings.store_address))
    return WebhookSender(queue.webhooks, queue, settings, Metrics())


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Let any name resolve to addresses; returns the names that are asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[tuple[Any, ...]]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_name_with_one_forbidden_address_among_several_is_not_sent_to(
    sender: WebhookSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, "1.1.1.1", "10.0.0.1")
    delivery = Delivery("msg_1", "gone", "completed", "http://a.example/", 0)
    with pytest.raises(TargetError, match="resolves to an address that is not allowed for webhooks"):
        asyncio.run(sender._resolve("a.example", 80, delivery))  # alone, because a delivery would only log the refusal


def test_connection_goes_to_the_address_that_was_checked_and_the_name_is_not_resolved_again(
    sender: WebhookSender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves otherwise the second time (DNS rebinding) would be connected to unchecked."""
    asked = resolving(monkeypatch, "127.0.0.1")
    delivery = Delivery("msg_1", "gone", "completed", f"http://a.example:{receiver.port}/", 0)

    async def send() -> None:
        async with httpx2.AsyncClient(trust_env=False) as client:
            await sender._post(client, delivery)  # one try, without the pauses between tries

    asyncio.run(send())
    assert receiver.get().headers["Host"] == f"a.example:{receiver.port}"
    assert asked.count("a.example") == 1


def test_international_name_is_resolved_in_its_encoded_form(
    sender: WebhookSender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver encodes a decoded name by rules of 2003, under which this one is the name of another site, fass."""
    asked = resolving(monkeypatch, "127.0.0.1")
    url = f"http://xn--fa-hia.example:{receiver.port}/"

    async def send() -> None:
        async with httpx2.AsyncClient(trust_env=False) as client:
            # one try, without the pauses between tries
            await sender._post(client, Delivery("msg_1", "gone", "completed", url, 0))

    asyncio.run(send())
    receiver.get()
    assert "xn--fa-hia.example" in asked
    assert "fa\u00df.example" not in asked


@pytest.mark.process
def test_service_without_secret_takes_no_webhooks(service_settings: Settings, worker: ToyWorker) -> None:
    with running_service(service_settings) as (address, _, _), httpx2.Client(base_url=address) as client:
        answer = client.post("/v1/jobs", json=body(webhook_url="https://a.example"))
    assert is_problem(answer, 422, "/webhook_url")
    assert "ADM_WEBHOOK_SECRET is not set" in answer.json()["detail"]
