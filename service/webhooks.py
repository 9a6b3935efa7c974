"""Sends webhooks: signed as Standard Webhooks says, to checked addresses alone, a few at a time, for a day.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import time
from collections import Counter
from datetime import UTC, datetime
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urljoin

import httpx2
import structlog
from anyio import CapacityLimiter, to_thread
from redis.exceptions import RedisError

from jobs.contract.errors import RefusedError
from jobs.job_queue import JobQueue
from jobs.queue.webhook_targets import WebhookTargets
from jobs.queue.webhooks import Delivery, Webhooks
from jobs.settings import Settings
from service.metrics import Metrics

log = structlog.get_logger("service.webhooks")

TICK_SECONDS = 0.5  # between two looks at what is due
ATTEMPT_SECONDS = 15.0  # of one attempt, with all its redirects; below the lease of a delivery
MOST_AT_ONCE = 32
MOST_PER_HOST = 4  # at once: a slow receiver must not hold up all others
PASS_SECONDS = 2.0  # after which a delivery comes again whose host has enough of them
MAX_REDIRECTS = 3
REDIRECTS = frozenset({307, 308})  # those that keep a POST a POST
RETRY_LATER = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
MAX_RETRY_AFTER_SECONDS = 86400


class TargetError(Exception):
    """A webhook cannot be sent where it should go, in one line."""


class RejectedError(Exception):
    """The receiver did not take it."""

    def __init__(self, reason: str, *, for_good: bool = False, after_seconds: float = 0) -> None:
        super().__init__(reason)
        self.for_good, self.after_seconds = for_good, after_seconds


class WebhookSender:
    """Any number of services may send at once: each delivery is one's at a time."""

    def __init__(self, webhooks: Webhooks, queue: JobQueue, settings: Settings, metrics: Metrics) -> None:
        self._webhooks, self._queue, self._metrics = webhooks, queue, metrics
        self._keys = settings.webhook_keys
        self._targets = WebhookTargets(settings.webhook_networks)
        self._sending: dict[asyncio.Task[None], str] = {}  # with the host that each goes to
        self._thread = CapacityLimiter(1)  # for calls of Redis, which wait behind no request's

    async def run(self) -> None:
        """Send until cancelled."""
        if not self._keys:
            return  # none can have been accepted; those of before the secret was taken away wait for it
        async with httpx2.AsyncClient(trust_env=False, timeout=ATTEMPT_SECONDS, follow_redirects=False) as client:
            try:
                while True:
                    try:
                        await self._begin(client)
                    except RedisError as error:
                        log.warning("redis_away", error=type(error).__name__)
                    except Exception:
                        log.exception("failed")
                    await asyncio.sleep(TICK_SECONDS)
            finally:
                for each in list(self._sending):
                    each.cancel()
                await asyncio.gather(*self._sending, return_exceptions=True)

    async def _begin(self, client: httpx2.AsyncClient) -> None:
        """Begin to send what is due, as far as there is room."""
        room = MOST_AT_ONCE - len(self._sending)
        if room <= 0:
            return
        for delivery in await to_thread.run_sync(self._webhooks.claim, room, limiter=self._thread):
            host = httpx2.URL(delivery.url).host
            if Counter(self._sending.values())[host] >= MOST_PER_HOST:
                await to_thread.run_sync(self._webhooks.put_off, delivery, PASS_SECONDS, limiter=self._thread)
                continue
            task = asyncio.create_task(self._attempt(client, delivery))
            self._sending[task] = host
            task.add_done_callback(self._sending.pop)

    async def _attempt(self, client: httpx2.AsyncClient, delivery: Delivery) -> None:
        """One attempt, and what follows from it; a Redis that is away leaves it to the next lease."""
        reason, for_good, after_seconds = "", False, 0.0
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                await self._post(client, delivery)
        except RejectedError as error:
            reason, for_good, after_seconds = str(error), error.for_good, error.after_seconds
        except TimeoutError:
            reason = f"no answer within {ATTEMPT_SECONDS:g} s"
        except (httpx2.HTTPError, httpx2.InvalidURL, TargetError, OSError) as error:
            reason = str(error) or type(error).__name__
        try:
            outcome = await self._note(delivery, reason, for_good, after_seconds)
        except RedisError as error:
            log.warning("redis_away", error=type(error).__name__)
            return
        self._metrics.webhooks.labels(delivery.type, outcome).inc()
        log.info("webhook", outcome=outcome, id=delivery.id, job_id=delivery.job_id, reason=reason)

    async def _note(self, delivery: Delivery, reason: str, for_good: bool, after_seconds: float) -> str:
        def note() -> str:
            if not reason:
                self._webhooks.delivered(delivery)
                return "delivered"
            again = self._webhooks.failed(delivery, reason, for_good=for_good, after_seconds=after_seconds)
            return "retried" if again else "given_up"

        return await to_thread.run_sync(note, limiter=self._thread)

    async def _post(self, client: httpx2.AsyncClient, delivery: Delivery) -> None:
        """Raises: RejectedError; TargetError; httpx2.HTTPError; OSError."""
        body = await to_thread.run_sync(self._body, delivery, limiter=self._thread)
        url = delivery.url
        for _ in range(MAX_REDIRECTS + 1):
            response_status, location, retry_after = await self._exchange(client, url, delivery, body)
            if HTTPStatus.OK <= response_status < HTTPStatus.MULTIPLE_CHOICES:
                return
            if response_status in REDIRECTS and location:
                try:
                    target = urljoin(url, location)
                except ValueError as error:
                    raise TargetError("the receiver redirects to what is no URL") from error
                if url.startswith("https:") and not target.startswith("https:"):
                    raise RejectedError("the receiver redirects from https to another scheme")
                url = target
                continue
            asked = float(retry_after) if retry_after.isdecimal() and response_status in RETRY_LATER else 0.0
            raise RejectedError(
                f"the receiver answers {response_status}",
                for_good=response_status == HTTPStatus.GONE,
                after_seconds=min(asked, MAX_RETRY_AFTER_SECONDS),
            )
        raise RejectedError(f"the receiver redirects more than {MAX_REDIRECTS} times")

    async def _exchange(
        self, client: httpx2.AsyncClient, url: str, delivery: Delivery, body: bytes
    ) -> tuple[int, str, str]:
        """Status, Location and Retry-After of one POST, to a checked address; of the answer no more is read."""
        parsed = httpx2.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
            raise TargetError(f"not an address for webhooks: scheme {parsed.scheme[:20]!r}")
        headers = signed(self._keys, delivery.id, int(time.time()), body) | {
            "Host": parsed.netloc.decode("ascii"),
            "Content-Type": "application/json",
            "User-Agent": "adm-serve",
            "Connection": "close",
        }
        address = await self._resolve(parsed.host, parsed.port or {"http": 80, "https": 443}[parsed.scheme])
        # The address is connected to that was checked: the name may resolve otherwise the next time.
        async with client.stream(
            "POST",
            parsed.copy_with(host=address),
            content=body,
            headers=headers,
            extensions={"sni_hostname": parsed.raw_host.decode("ascii")},
        ) as response:
            return response.status_code, response.headers.get("Location", ""), response.headers.get("Retry-After", "")

    async def _resolve(self, host: str, port: int) -> str:
        """The address of a host. Raises: TargetError unless all that its name resolves to are allowed."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise TargetError("the receiver's name cannot be resolved") from error
        addresses = [ip_address(str(each[4][0]).partition("%")[0]) for each in found]
        if not addresses or not all(map(self._targets.allows, addresses)):
            raise TargetError("the receiver's name resolves to an address that webhooks do not go to")
        return str(addresses[0])

    def _body(self, delivery: Delivery) -> bytes:
        """The event: the job as it ended, which changes no more, or what is known of one that was removed."""
        try:
            data = json.loads(self._queue.get(delivery.job_id).model_dump_json())
        except RefusedError:
            data = {"id": delivery.job_id, "object": "job", "status": delivery.status, "deleted": True}
        timestamp = datetime.fromtimestamp(delivery.created_at, UTC).isoformat().replace("+00:00", "Z")
        return json.dumps({"type": delivery.type, "timestamp": timestamp, "data": data}).encode()


def signed(keys: tuple[bytes, ...], id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that prove who sent a body and when, by every key: a receiver knows the new one or the old."""
    message = f"{id}.{timestamp}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key, message, hashlib.sha256)).decode() for key in keys]
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{each}" for each in signatures),
    }
