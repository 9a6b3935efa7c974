"""How long a device takes for what it is given: a GPU works by itself, and the host's clock tells nothing of it."""

import time
from typing import Protocol

import torch


class Lap(Protocol):
    """From its making to `end`, in what a device is given."""

    def end(self) -> None:
        """Mark where what is timed has been given to the device."""

    @property
    def is_over(self) -> bool:
        """Whether the device has come to the end."""

    def wait(self) -> float:
        """Let the device come to the end; the seconds it took. Raises: torch.AcceleratorError if it is lost."""


class HostLap:
    """Of a device that has done what it is given when a call returns."""

    def __init__(self) -> None:
        self._started = self._ended = time.perf_counter()

    def end(self) -> None:
        self._ended = time.perf_counter()

    @property
    def is_over(self) -> bool:
        return True

    def wait(self) -> float:
        return self._ended - self._started


class CudaLap:
    """Of a GPU, by its own clock: waiting for work before the start, or for another lap's end, counts for nothing."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._start, self._end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._start.record(self._stream)

    def end(self) -> None:
        self._end.record(self._stream)

    @property
    def is_over(self) -> bool:
        return bool(self._end.query())

    def wait(self) -> float:
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1000


def lap_on(device: torch.device) -> Lap:
    """A lap that starts here."""
    return CudaLap(device) if works_by_itself(device) else HostLap()


def works_by_itself(device: torch.device) -> bool:
    """Whether a device is still at work when the call that gave it that work has returned."""
    return device.type == "cuda"
