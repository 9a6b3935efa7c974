"""Quotas of callers: posts a minute, estimated device seconds a minute, and device seconds queued at once.

The two quotas per minute are counted in sliding windows. The queued device seconds are a sum over jobs, which the
transactions that change jobs update (`jobs.queue.transitions`). Operators and callers without keys have no quota.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.client import Redis

from jobs.contract.caller import Caller, Role
from jobs.contract.errors import OverQuotaError
from jobs.settings import Settings

if TYPE_CHECKING:
    from jobs.callers.quota_windows import Window

WINDOW_SECONDS = 60
MS = 1000  # device time is counted in milliseconds


@dataclass(frozen=True)
class Rate:
    """A quota per minute."""

    policy: str
    what: str
    setting: str
    quota: int
    unit: int  # amount in the window that equals 1 of the quota
    window: "Window"

    def allows(self, caller: Caller, amount: int) -> bool:
        """Charge a caller; return False and charge nothing if that exceeds its quota."""
        return caller.role is not Role.USER or self.window.take(caller.id, amount)

    def take(self, caller: Caller, amount: int) -> None:
        """Charge a caller. Raises: OverQuotaError; then nothing is charged."""
        if self.allows(caller, amount):
            return
        left = self.window.left(caller.id, amount)
        excess = f"exceed the quota of {self.quota} a minute ({self.setting})"
        detail = f"your {self.what} {excess}"
        if left.seconds is None:
            asked = f"{amount / self.unit:.1f}".removesuffix(".0")
            detail = f"the {asked} {self.what} of this request alone {excess}: split the request"
        raise OverQuotaError(
            detail,
            policy=self.policy,
            quota=self.quota,
            remaining=left.amount // self.unit,
            window_seconds=WINDOW_SECONDS,
            retry_after_seconds=left.seconds,
        )


class Quotas:
    """Charges callers, and refuses calls that exceed a quota.

    A call that is refused here is not charged for device seconds. A call that is refused when its jobs are queued,
    because another process of the service has queued jobs at the same moment, has been charged.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        posts, device = settings.quota_posts, settings.quota_device_seconds
        self._posts = rate(redis, "posts", "calls", "ADM_QUOTA_POSTS", posts, 1)
        self._device = rate(redis, "device-seconds", "device seconds", "ADM_QUOTA_DEVICE_SECONDS", device, MS)
        self._queued_seconds = settings.quota_queued_seconds

    def take_post(self, caller: Caller, number: int = 1) -> None:
        """Charge a call for `number` posts, including replayed and refused ones. Raises: OverQuotaError."""
        if self._posts is not None:
            self._posts.take(caller, number)

    def take_posts(self, calls: Counter[Caller]) -> set[Caller]:
        """Charge several calls of each caller at once; return the callers whose quota allows all their calls.

        The others are not charged; `take_post` shows which of their calls exceed the quota.
        """
        return {each for each, number in calls.items() if self._posts is None or self._posts.allows(each, number)}

    def limits_cost(self, caller: Caller) -> bool:
        """Return whether a caller has a quota of device seconds a minute."""
        return self._device is not None and caller.role is Role.USER

    def allows_cost(self, caller: Caller, cost_ms: int) -> bool:
        """Charge the estimated cost of several jobs; return False and charge nothing if that exceeds the quota."""
        return self._device is None or not cost_ms or self._device.allows(caller, cost_ms)

    def take_cost(self, caller: Caller, cost_ms: int) -> None:
        """Charge a job's estimated cost, which a cancellation does not refund. Raises: OverQuotaError."""
        if self._device is not None:
            self._device.take(caller, cost_ms)

    def most_queued_ms(self, caller: Caller) -> int | None:
        """The quota of a caller's queued cost; None if it has none."""
        quota = self._queued_seconds
        return None if quota is None or caller.role is not Role.USER else quota * MS

    def refuse_above_queued(self, caller: Caller, queued_ms: int, cost_ms: int) -> None:
        """Refuse a job that exceeds the quota of queued cost, with the caller's queued jobs. Raises: OverQuotaError."""
        most = self.most_queued_ms(caller)
        if most is not None and queued_ms + cost_ms > most:
            raise self.above_queued(queued_ms, cost_ms)

    def above_queued(self, queued_ms: int, cost_ms: int) -> OverQuotaError:
        """The refusal of a job that exceeds the quota of queued cost."""
        quota = self._queued_seconds
        assert quota is not None, "only a quota is exceeded"
        return OverQuotaError(
            f"you would have {(queued_ms + cost_ms) / MS:.1f} device seconds queued; the quota is {quota} "
            "(ADM_QUOTA_QUEUED_SECONDS); wait until some have started, or cancel some",
            policy="queued-device-seconds",
            quota=quota,
            remaining=max(0, quota - math.ceil(queued_ms / MS)),
            # the time in which one device does the excess work
            retry_after_seconds=(queued_ms + cost_ms) / MS - quota if cost_ms <= quota * MS else None,
        )


def rate(redis: Redis, policy: str, what: str, setting: str, quota: int | None, unit: int) -> Rate | None:
    """A quota per minute; None if it is not set, so that the library, which takes 4 MB, is not loaded."""
    if quota is None:
        return None
    from jobs.callers.quota_windows import Window

    return Rate(policy, what, setting, quota, unit, Window(redis, policy, quota * unit))
