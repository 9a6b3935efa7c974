"""Sends webhooks: signed by Standard Webhooks, only to checked addresses, a few at a time, with retries for a day.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from urllib.parse import urljoin

import httpx2
import structlog
from anyio import CapacityLimiter, to_thread
from redis.exceptions import RedisError

from jobs.contract.errors import RefusedError
from jobs.queue.job_queue import JobQueue
from jobs.queue.webhook_targets import WebhookTargets, host_of
from jobs.queue.webhooks import Choice, Delivery, Webhooks
from jobs.settings import Settings
from service.metrics import Metrics
from service.resolver import ResolutionError, Resolver

log = structlog.get_logger("service.webhooks")

TICK_SECONDS = 0.5  # between two looks for due deliveries
ATTEMPT_SECONDS = 15.0  # of one attempt, with all its redirects; below the lease of a delivery
MOST_AT_ONCE = 32
MOST_PER_HOST = 4  # at once, so that a slow receiver does not delay all others
PASS_SECONDS = 2.0  # delay of a delivery whose host or caller has its share already
Share = tuple[str, str]  # "host" or "caller", and its name
MAX_REDIRECTS = 3
REDIRECTS = frozenset({307, 308})  # redirects that keep the method POST
RETRY_LATER = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
MAX_RETRY_AFTER_SECONDS = 86400


class TargetError(Exception):
    """A webhook's target is not allowed or invalid; the message is one line."""


class RejectedError(Exception):
    """The receiver did not accept the webhook."""

    def __init__(self, reason: str, *, for_good: bool = False, after_seconds: float = 0) -> None:
        super().__init__(reason)
        self.for_good, self.after_seconds = for_good, after_seconds


class WebhookSender:
    """Sends due deliveries. Any number of services may do so at once, because each delivery is claimed by one."""

    def __init__(self, webhooks: Webhooks, queue: JobQueue, settings: Settings, metrics: Metrics) -> None:
        self._webhooks, self._queue, self._metrics = webhooks, queue, metrics
        self._keys = settings.webhook_keys
        self._targets = WebhookTargets(settings.webhook_networks)
        self._per_caller = settings.webhooks_per_caller
        self._resolver = Resolver()
        self._sending: dict[asyncio.Task[None], Delivery] = {}
        self._thread = CapacityLimiter(1)  # for calls of Redis, so that they do not wait for requests' threads

    async def run(self) -> None:
        """Send until cancelled."""
        if not self._keys:
            return  # without a secret no webhooks are accepted; earlier deliveries wait until it is set again
        async with httpx2.AsyncClient(trust_env=False, timeout=ATTEMPT_SECONDS, follow_redirects=False) as client:
            try:
                while True:
                    try:
                        await self._begin(client)
                    except RedisError as error:
                        log.warning("redis_unavailable", error=type(error).__name__)
                    except Exception:
                        log.exception("failed")
                    await asyncio.sleep(TICK_SECONDS)
            finally:
                for each in list(self._sending):
                    each.cancel()
                await asyncio.gather(*self._sending, return_exceptions=True)

    async def _begin(self, client: httpx2.AsyncClient) -> None:
        """Start to send due deliveries, as many as there is room for."""
        if len(self._sending) >= MOST_AT_ONCE:
            return
        for delivery in await to_thread.run_sync(self._webhooks.claim, self._choose, limiter=self._thread):
            task = asyncio.create_task(self._attempt(client, delivery))
            self._sending[task] = delivery
            task.add_done_callback(self._sending.pop)

    def _choose(self, due: Sequence[Delivery]) -> Choice:
        """Choose as many deliveries as there is room for, and of each host and caller no more than its share.

        Deliveries above a share are delayed, later ones for longer. Otherwise each claim would find many deliveries of
        one caller before those of others.
        """
        taken = Counter(share for each in list(self._sending.values()) for share, _ in self._shares(each))
        room, waiting = MOST_AT_ONCE - len(self._sending), Counter[Share]()
        sent, later = list[Delivery](), dict[str, float]()
        for each in due:
            if len(sent) == room:
                break
            shares = self._shares(each)
            full = [(share, most) for share, most in shares if taken[share] >= most]
            if not full:
                sent.append(each)
                taken.update(share for share, _ in shares)
                continue
            waits = []
            for share, most in full:
                waits.append(PASS_SECONDS * (1 + waiting[share] // most))
                waiting[share] += 1
            later[each.id] = max(waits)
        return Choice(sent, later)

    def _shares(self, delivery: Delivery) -> list[tuple[Share, int]]:
        """The shares that a delivery counts for, and the limit of each; without keys there is no caller's share."""
        of_host = ("host", host_of(delivery.url)), MOST_PER_HOST
        return [of_host, (("caller", delivery.caller), self._per_caller)] if delivery.caller else [of_host]

    async def _attempt(self, client: httpx2.AsyncClient, delivery: Delivery) -> None:
        """Make one attempt and record its outcome; if Redis is unavailable, the attempt is repeated after the lease."""
        reason, for_good, after_seconds = "", False, 0.0
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                await self._post(client, delivery)
        except RejectedError as error:
            reason, for_good, after_seconds = str(error), error.for_good, error.after_seconds
        except TimeoutError:
            reason = f"no answer within {ATTEMPT_SECONDS:g} s"
        except (httpx2.HTTPError, httpx2.InvalidURL, TargetError, ResolutionError, OSError) as error:
            reason = str(error) or type(error).__name__
        try:
            outcome = await self._note(delivery, reason, for_good, after_seconds)
        except RedisError as error:
            log.warning("redis_unavailable", error=type(error).__name__)
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
        """Post a delivery, following redirects. Raises: those of `_exchange`; RejectedError."""
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
                    raise TargetError("the receiver redirects to an invalid URL") from error
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
        """Status, Location and Retry-After of one POST to a checked address; the answer's body is not read.

        Raises: TargetError; ResolutionError; httpx2.HTTPError; OSError.
        """
        parsed = httpx2.URL(url)
        host = parsed.raw_host.decode("ascii")  # `host` decodes IDNA names, which the resolver encodes by other rules
        if parsed.scheme not in ("http", "https") or not host or parsed.userinfo:
            raise TargetError(f"not an address for webhooks: scheme {parsed.scheme[:20]!r}")
        headers = signed(self._keys, delivery.id, int(time.time()), body) | {
            "Host": parsed.netloc.decode("ascii"),
            "Content-Type": "application/json",
            "User-Agent": "adm-serve",
            "Connection": "close",
        }
        port = parsed.port or {"http": 80, "https": 443}[parsed.scheme]
        address = await self._resolve(host, port, delivery)
        # Connects to the checked address, because the name may resolve differently the next time.
        async with client.stream(
            "POST",
            parsed.copy_with(host=address),
            content=body,
            headers=headers,
            extensions={"sni_hostname": host},
        ) as response:
            return response.status_code, response.headers.get("Location", ""), response.headers.get("Retry-After", "")

    async def _resolve(self, host: str, port: int, delivery: Delivery) -> str:
        """The address of a host. Raises: TargetError unless all its addresses are allowed; ResolutionError."""
        share, most = self._shares(delivery)[-1]  # the caller's; without keys that of the delivery's own host
        addresses = await self._resolver.addresses(host, port, ":".join(share), most)
        if not all(map(self._targets.allows, addresses)):
            raise TargetError("the receiver's name resolves to an address that is not allowed for webhooks")
        return str(addresses[0])

    def _body(self, delivery: Delivery) -> bytes:
        """The event: the ended job, which is final, or the known fields of a job that was removed."""
        try:
            data = json.loads(self._queue.get(delivery.job_id).model_dump_json())
        except RefusedError:
            data = {"id": delivery.job_id, "object": "job", "status": delivery.status, "deleted": True}
        timestamp = datetime.fromtimestamp(delivery.created_at, UTC).isoformat().replace("+00:00", "Z")
        return json.dumps({"type": delivery.type, "timestamp": timestamp, "data": data}).encode()


def signed(keys: tuple[bytes, ...], id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The signature headers of a body, with a signature by every key: a receiver may have the old or the new one."""
    message = f"{id}.{timestamp}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key, message, hashlib.sha256)).decode() for key in keys]
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{each}" for each in signatures),
    }
