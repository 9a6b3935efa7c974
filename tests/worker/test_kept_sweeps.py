"""Sweeps beside weights: a worker announces those of its own weights; invalid ones do not stop its start."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from jobs.contract.sweeps import Sweep
from jobs.queue.retirement import Retirement
from jobs.redis import keys
from jobs.settings import Settings
from tests.jobs.samples import DEMO, DEMO_UNCOND, SWEEP
from tests.worker.conftest import Bench
from tests.worker.names import owned
from worker.inbox import Inbox
from worker.kept_sweeps import kept_sweeps


def laid(weights: Path, text: str, name: str = "demo") -> Path:
    path = weights / "stack" / f"{name}.sweep.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return weights


def test_sweep_of_a_pipelines_own_weights_is_kept(tmp_path: Path) -> None:
    assert kept_sweeps(laid(tmp_path, SWEEP.model_dump_json()), [DEMO, DEMO_UNCOND]) == [SWEEP]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        SWEEP.model_copy(update={"cells": ()}).model_dump_json(),
        SWEEP.model_copy(update={"weights": ("b" * 16, "other")}).model_dump_json(),
        SWEEP.model_copy(update={"pipeline": "demo-uncond"}).model_dump_json(),
    ],
)
def test_sweep_that_is_none_or_of_other_weights_is_left_out_with_a_warning(tmp_path: Path, text: str) -> None:
    with capture_logs() as logged:
        assert kept_sweeps(laid(tmp_path, text), [DEMO]) == []
    assert [(each["event"], each["log_level"]) for each in logged] == [("sweep_left_out", "warning")]
    assert logged[0]["file"].endswith("demo.sweep.json")


def test_sweep_is_announced_with_its_pipeline_and_goes_with_it(bench: Bench, inbox: Inbox, settings: Settings) -> None:
    bench.redis.hset(keys.SWEEPS, "demo-uncond", "of weights of before")
    Inbox(bench.redis, settings, owned("cpu-1"), [DEMO, DEMO_UNCOND], sweeps=[SWEEP]).open()
    assert bench.redis.hkeys(keys.SWEEPS) == [b"demo"]
    text = bench.redis.hget(keys.SWEEPS, "demo")
    assert isinstance(text, bytes)
    assert Sweep.model_validate_json(text) == SWEEP
    assert Retirement(bench.redis, bench.queue.ledger, bench.queue.fleet, 0).retire_pipelines() == [
        "demo",
        "demo-uncond",
    ]
    assert bench.redis.hkeys(keys.SWEEPS) == []
