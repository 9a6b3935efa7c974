"""A worker can be told to stop at any instant, by a signal's handler too."""

import subprocess
import sys
import time
from threading import Timer

import pytest

from worker.stopping import Stopping

INTERRUPTED = """
import signal
from worker.stopping import Stopping
for delay in range(400):
    stopping = Stopping()
    signal.signal(signal.SIGALRM, lambda number, frame: stopping.set())
    signal.setitimer(signal.ITIMER_REAL, 0.0005 + delay * 2e-6)
    while not stopping.is_set():
        stopping.wait(0.00001)
"""


@pytest.mark.slow
def test_handler_may_interrupt_whoever_waits() -> None:
    """With an Event some of these never return."""
    subprocess.run([sys.executable, "-c", INTERRUPTED], check=True, timeout=60)


def test_wait_ends_when_it_is_set() -> None:
    stopping = Stopping()
    stopping.wait(0.001)
    assert not stopping.is_set()
    timer = Timer(0.05, stopping.set)
    timer.start()
    for _ in range(2):
        stopping.wait(600)
        assert stopping.is_set()
    assert stopping.asked_at <= time.monotonic()
    timer.join()


def test_first_time_counts() -> None:
    stopping = Stopping()
    assert not stopping.is_set()
    stopping.set()
    first = stopping.asked_at
    stopping.set()
    assert stopping.asked_at == first
