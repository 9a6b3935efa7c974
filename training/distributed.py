"""The processes of one run: torchrun starts them, and each computes its share of every batch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from training.config import ConfigError
from vocabulary.counts import counted

TIMEOUT = timedelta(minutes=30)  # longest wait for another process: a preview or a save of the first one takes minutes


class LostProcessError(OSError):
    """Another process of the run has ended or cannot be reached."""


@contextmanager
def together() -> Iterator[None]:
    """Turn torch's errors of collective calls into LostProcessError, whose message is one line."""
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's errors; most have no type of their own
        raise LostProcessError(
            "another process of the run was lost; start all of them again: the run resumes from its last state"
        ) from error


@dataclass(frozen=True)
class Group:
    """This process among all processes of a run."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Return whether this process writes the run's files."""
        return self.rank == 0

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of all processes' values, in place."""
        if self.size > 1:
            with together():
                dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """All processes' values [N, ...] in the order of samples, which processes take in turn: [N * size, ...]."""
        if self.size == 1:
            return values
        shares = [torch.empty_like(values) for _ in range(self.size)]
        with together():
            dist.all_gather(shares, values)
        return torch.stack(shares, dim=1).flatten(0, 1)

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            with together():
                dist.barrier()


@contextmanager
def join_group(device: torch.device) -> Iterator[Group]:
    """Join the processes that torchrun started with this one; without torchrun the group has one process."""
    if "RANK" not in os.environ:
        yield Group()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        group = Group(dist.get_rank(), dist.get_world_size())
        yield group
        group.wait()  # closing a connection that another process still reads would abort that process
    finally:
        dist.destroy_process_group()


def local_device(name: str) -> torch.device:
    """The device of this process: "auto" takes the GPU with the process' local rank, if there are GPUs.

    Raises: ConfigError for a device that this machine, or the installed torch, does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name)
    except RuntimeError as error:
        raise ConfigError(f"compute.device = {name!r} is none of auto, cpu, cuda, cuda:N and mps") from error
    gpus = torch.cuda.device_count()
    present = {"cpu": True, "cuda": (device.index or 0) < gpus, "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        raise ConfigError(
            f"compute.device = {name!r} is not on this machine: torch {torch.__version__} sees {counted(gpus, 'GPU')}; "
            "auto takes what there is"
        )
    return device
