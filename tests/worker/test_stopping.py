"""A worker can be stopped at any instant, by a signal's handler too."""

import signal
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
    """With a threading.Event in place of Stopping, some of these waits never return."""
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


SIGNALLED = """
import os, signal, sys, time
from worker.stopping import InterruptedStartError, Stopping
stopping = Stopping()
stopping.listen()
"""


def run(program: str) -> int:
    return subprocess.run([sys.executable, "-c", SIGNALLED + program], check=False, timeout=60).returncode


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    first_alone = f"os.kill(os.getpid(), {number.value}); assert stopping.is_set(); sys.exit(3)"
    assert run(first_alone) == 3
    assert run(f"os.kill(os.getpid(), {number.value}); os.kill(os.getpid(), {number.value}); sys.exit(3)") == -number


def test_signal_ends_what_may_be_interrupted_also_when_it_comes_before_or_where_an_exception_cannot_be_raised() -> None:
    assert (
        run("""
try:
    with stopping.interrupting():
        os.kill(os.getpid(), signal.SIGTERM)
        sys.exit("it went on")
except InterruptedStartError:
    sys.exit(4)
""")
        == 4
    )
    assert (
        run("""
os.kill(os.getpid(), signal.SIGTERM)
try:
    with stopping.interrupting():
        sys.exit("it began")
except InterruptedStartError:
    sys.exit(6)
""")
        == 6
    )
    assert (
        run("""
class Leaves:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
try:
    with stopping.interrupting():
        Leaves()
except InterruptedStartError:
    sys.exit(5)
""")
        == 5
    )


def test_start_that_swallows_the_interruption_is_interrupted_again() -> None:
    program = (
        "import contextlib, os, signal, time;"
        "from worker.stopping import InterruptedStartError, Stopping;"
        "stopping = Stopping(); stopping.listen();\n"
        "try:\n"
        "    with stopping.interrupting():\n"
        "        with contextlib.suppress(BaseException):\n"
        "            os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)\n"
        "        time.sleep(60)\n"
        "        print('went on')\n"
        "except InterruptedStartError:\n"
        "    print('interrupted')\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["interrupted"]


REPLACED = """
try:
    with stopping.interrupting():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except BaseException:
            raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'")
except InterruptedStartError:
    sys.exit(7)
"""
FAULTY = """
try:
    with stopping.interrupting():
        raise ValueError("a fault of the start's own")
except ValueError:
    sys.exit(8)
"""


@pytest.mark.parametrize(("start", "status"), [(REPLACED, 7), (FAULTY, 8)])
def test_error_that_takes_the_interruptions_place_is_the_interruption(start: str, status: int) -> None:
    """torch replaces the interruption by an error of its own while it reads weights, which then passed for damaged."""
    ended = subprocess.run([sys.executable, "-c", SIGNALLED + start], check=False, timeout=60)
    assert ended.returncode == status
