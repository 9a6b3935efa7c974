"""The priorities of jobs, and the ratio of their weights."""

from typing import Literal

Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")  # in the order in which workers claim
PRIORITY_RATIO = 16  # a priority level equals a factor of 16 in remaining work
