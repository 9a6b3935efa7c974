"""The number of computing threads: no more than a container's quota."""

import os
from pathlib import Path

import pytest
import torch

from engine.threads import torch_threads, usable_threads


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)


@pytest.mark.parametrize(
    ("written", "threads"),
    [("max 100000\n", 64), ("200000 100000\n", 2), ("250000 100000\n", 3), ("5000 100000\n", 1), ("garbage", 64)],
)
def test_threads_are_no_more_than_a_quota_pays_for(tmp_path: Path, written: str, threads: int) -> None:
    (tmp_path / "cpu.max").write_text(written)
    assert usable_threads(tmp_path) == threads


@pytest.mark.parametrize(("quota", "threads"), [("-1", 64), ("150000", 2)])
def test_quota_of_older_control_groups_counts_too(tmp_path: Path, quota: str, threads: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_threads(tmp_path) == threads


def test_without_control_groups_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_threads(tmp_path) == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 6}, raising=False)
    assert usable_threads(tmp_path) == 3


def test_without_a_wish_there_is_a_thread_for_each_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(1)  # as a process that serves has it
    assert usable_threads(tmp_path) == torch.cpu.get_capabilities()["num_physical_cores"]


def test_threads_are_shared_inside_only() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
