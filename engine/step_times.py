"""Timers of a device's work. A GPU works asynchronously, so the host's clock does not measure it."""

import time
from typing import Protocol

import torch


class Timer(Protocol):
    """Times the work that is launched on a device between the construction of the timer and `end`."""

    def end(self) -> None:
        """Mark the end of the timed work."""

    @property
    def is_done(self) -> bool:
        """Return whether the device has reached the end."""

    def wait(self) -> float:
        """Wait until the device reaches the end; return the seconds. Raises: torch.AcceleratorError if it is lost."""


class HostTimer:
    """Times a synchronous device, whose work is done when a call returns."""

    def __init__(self) -> None:
        self._started = self._ended = time.perf_counter()

    def end(self) -> None:
        self._ended = time.perf_counter()

    @property
    def is_done(self) -> bool:
        return True

    def wait(self) -> float:
        return self._ended - self._started


class CudaTimer:
    """Times a GPU by its own clock. Idle time before the start, and the work of an earlier timer, do not count."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._start, self._end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._start.record(self._stream)

    def end(self) -> None:
        self._end.record(self._stream)

    @property
    def is_done(self) -> bool:
        return bool(self._end.query())

    def wait(self) -> float:
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1000


def timer_on(device: torch.device) -> Timer:
    """Return a timer that starts now."""
    return CudaTimer(device) if is_asynchronous(device) else HostTimer()


def is_asynchronous(device: torch.device) -> bool:
    """Return whether a device may still work when the call that launched the work has returned."""
    return device.type == "cuda"
