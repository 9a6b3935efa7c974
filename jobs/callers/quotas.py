"""Quotas of callers: posts a minute, estimated device seconds a minute, and device seconds queued at once.

The two by the minute are counted by the library `limits` in Redis, in sliding windows. What is queued is no rate but a
sum over jobs, which the transactions that change them keep (`jobs.transitions`). Operators, and callers where there are
no keys, have no quota.
"""

import math
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis.client import Redis

from jobs.callers.caller import Caller, Role
from jobs.errors import OverQuotaError
from jobs.settings import Settings

PREFIX = "adm:quota"  # of the library's keys, which expire within two minutes
WINDOW_SECONDS = 60
MS = 1000  # the library counts whole numbers: milliseconds of a device
POSTS, DEVICE, QUEUED = "posts", "device-seconds", "queued-device-seconds"  # names of the policies


@dataclass(frozen=True)
class Rate:
    """A policy by the minute."""

    policy: str
    setting: str
    item: RateLimitItem
    unit: int  # counted for 1 of the quota

    @property
    def quota(self) -> int:
        return self.item.amount // self.unit


class Quotas:
    """Charges callers, and refuses what is above a quota; nothing is charged for what a quota refuses."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._storage = RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix=PREFIX)
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)
        self._posts = rate(POSTS, "ADM_QUOTA_POSTS", settings.quota_posts, 1)
        self._device = rate(DEVICE, "ADM_QUOTA_DEVICE_SECONDS", settings.quota_device_seconds, MS)
        self._queued_seconds = settings.quota_queued_seconds

    def take_post(self, caller: Caller) -> None:
        """Charge a call that makes something, replayed and refused ones too. Raises: OverQuotaError."""
        if self._posts is not None:
            self._take(self._posts, caller, 1, "calls")

    def take_cost(self, caller: Caller, cost_ms: int) -> None:
        """Charge a job's estimated cost; a cancellation does not give it back. Raises: OverQuotaError."""
        if self._device is not None:
            self._take(self._device, caller, cost_ms, "device seconds")

    def refuse_above_queued(self, caller: Caller, queued_ms: int, cost_ms: int) -> None:
        """Raises: OverQuotaError where a job and those that a caller has queued cost more than may be queued."""
        quota = self._queued_seconds
        if quota is None or caller.role is not Role.USER or queued_ms + cost_ms <= quota * MS:
            return
        raise OverQuotaError(
            f"{(queued_ms + cost_ms) / MS:.1f} device seconds of yours would be queued, and the quota is {quota} "
            "(ADM_QUOTA_QUEUED_SECONDS); wait until some have started, or cancel some",
            policy=QUEUED,
            quota=quota,
            remaining=max(0, quota - math.ceil(queued_ms / MS)),
            # by then a device would have made room
            retry_after_seconds=(queued_ms + cost_ms) / MS - quota if cost_ms <= quota * MS else None,
        )

    def _take(self, rate: Rate, caller: Caller, amount: int, what: str) -> None:
        if caller.role is not Role.USER or self._limiter.hit(rate.item, caller.id, cost=amount):
            return
        remaining, wait_seconds = self._look(rate.item, caller, amount)
        detail = f"{what} of yours are over the quota of {rate.quota} a minute ({rate.setting})"
        if wait_seconds is None:
            detail = f"{amount / rate.unit:.1f} {detail}, and always would be: ask for less at a time"
        raise OverQuotaError(
            detail,
            policy=rate.policy,
            quota=rate.quota,
            remaining=remaining // rate.unit,
            window_seconds=WINDOW_SECONDS,
            retry_after_seconds=wait_seconds,
        )

    def _look(self, item: RateLimitItem, caller: Caller, amount: int) -> tuple[int, float | None]:
        """What a caller has left of a quota, and in how many seconds it has so much; None: never.

        The library counts in windows that follow each other; the one before counts by the part of it that lies within
        the last minute, so it fades.
        """
        found = self._storage.get_sliding_window(item.key_for(caller.id), WINDOW_SECONDS)
        before, before_left, current, current_left = found
        remaining = max(0, math.floor(item.amount - current - before * before_left / WINDOW_SECONDS))
        if amount > item.amount:
            return remaining, None
        room = item.amount - current - amount
        if room >= 0:
            return remaining, max(0.0, before_left - room * WINDOW_SECONDS / before) if before else 0.0
        to_the_end = max(0.0, current_left - WINDOW_SECONDS)
        return remaining, to_the_end + WINDOW_SECONDS * (1 - (item.amount - amount) / current)


def rate(policy: str, setting: str, quota: int | None, unit: int) -> Rate | None:
    return None if quota is None else Rate(policy, setting, RateLimitItemPerMinute(quota * unit, 1, policy), unit)
