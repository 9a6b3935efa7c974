"""The number of workers that KEDA and its HorizontalPodAutoscaler keep, by the rule of deploy/kubernetes/overlays/keda.

The same object decides in the simulation (`bench.simulate_fleet`) and over real workers (`bench.fleet`). It follows
their documentation: KEDA decides between 0 and 1 replica, by whether a trigger is active; from 1 on, the
HorizontalPodAutoscaler decides, by the value of each trigger per replica.
"""

import math
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rule:
    """The numbers of the ScaledObject; tests/deploy/test_kubernetes.py compares both."""

    threshold_seconds: float = 60.0  # target of queued work per replica, in one worker's time
    activation_seconds: float = 15.0  # queued work above which an empty fleet starts
    rows: int = 64  # target of images in flight per replica: two batches of ADM_MAX_ROWS
    patience_seconds: float = 600.0  # time in the queue after which any work starts an empty fleet
    polling_seconds: float = 15.0
    cooldown_seconds: float = 600.0  # time without work after which the last replica stops
    stabilization_seconds: float = 300.0  # the largest number wanted in this time is kept
    up: int = 4  # replicas a minute
    down: int = 1  # replicas a minute
    min_replicas: int = 0
    max_replicas: int = 8
    period_seconds: float = 60.0  # of `up` and `down`


TOLERANCE = 0.1  # of a HorizontalPodAutoscaler: relative distance from the target within which it does nothing


@dataclass
class Autoscaler:
    """Keeps the history for stabilization, rates and cooldown."""

    rule: Rule
    wanted: deque[tuple[float, int]] = field(default_factory=deque)  # in the stabilization window
    was: deque[tuple[float, int]] = field(default_factory=deque)  # replicas in the last period
    active_at: float = -math.inf
    queued_since: float | None = None

    def decide(self, now: float, replicas: int, queued_seconds: float, rows: int) -> int:
        """The number of replicas from now on. Units: queued_seconds of one worker's time; rows in flight."""
        rule = self.rule
        if queued_seconds <= 0:
            self.queued_since = None
        elif self.queued_since is None:
            self.queued_since = now
        is_overdue = self.queued_since is not None and now - self.queued_since >= rule.patience_seconds
        if queued_seconds > rule.activation_seconds or rows > 0 or is_overdue:
            self.active_at = now
        if replicas == 0:
            self.wanted.clear()
            self.was.clear()
            return max(rule.min_replicas, min(1, rule.max_replicas)) if self.active_at == now else rule.min_replicas
        if now - self.active_at >= rule.cooldown_seconds:
            return rule.min_replicas
        targets = (queued_seconds / rule.threshold_seconds, rows / rule.rows)
        return self._within_rates(now, replicas, max(per_target(each, replicas) for each in targets))

    def _within_rates(self, now: float, replicas: int, target: int) -> int:
        """The target, limited by the rates of the HorizontalPodAutoscaler."""
        rule = self.rule
        target = min(max(target, 1), rule.max_replicas)
        self.wanted.append((now, target))
        self.was.append((now, replicas))
        while self.wanted[0][0] < now - rule.stabilization_seconds:
            self.wanted.popleft()
        while self.was[0][0] < now - rule.period_seconds:
            self.was.popleft()
        if target > replicas:
            return min(target, max(replicas, min(n for _, n in self.was) + rule.up))
        kept = min(replicas, max(n for _, n in self.wanted))
        return max(kept, min(replicas, max(n for _, n in self.was) - rule.down))


def per_target(value: float, replicas: int) -> int:
    """Replicas for one trigger: its value in units of the target, or the present number if that is within TOLERANCE."""
    return replicas if abs(value / replicas - 1) <= TOLERANCE else math.ceil(value)
