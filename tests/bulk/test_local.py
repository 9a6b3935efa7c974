"""`adm sample --local` with real networks, in this process, in processes for devices, and killed."""

import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from bulk.errors import BulkError
from bulk.local import Local
from bulk.run import RunOptions, run
from diffusion.tables import take_step
from engine import stage
from jobs.settings import Settings
from tests.bulk.programs import Sampling
from tests.waiting import eventually
from worker.local_worker import REFUSALS, LocalWorker, devices, pipeline_of

pytestmark = [pytest.mark.slow, pytest.mark.process]

QUICK = {"steps": 3, "upsample": False}
EVERY = (
    *("--guidance-scale", "2", "--guidance-interval", "100", "900", "--guidance-schedule", "entropy"),
    *("--steps", "3", "--sampler", "ddim", "--eta", "0.5", "--time-grid", "uniform", "--thresholding", "dynamic"),
    *("--upsample-steps", "2", "--upsample-sampler", "ddim", "--upsample-eta", "0", "--upsample-strength", "0.5"),
    *("--upsample-time-grid", "uniform", "--upsample-thresholding", "none"),
)
RUN = ("--local", "--count", "96", "--steps", "25", "--no-upsample", "--classes", "0,3")


def sampled(settings: Settings, out: Path, *on: str, **options: object) -> str:
    source = Local(settings, on or ("cpu",), pipeline_of, LocalWorker, REFUSALS)
    asked = {"model": "demo", "count": 40} | QUICK | options
    return run(RunOptions(out, **asked), source, Console(file=io.StringIO()))  # type: ignore[arg-type]  # as options come


@pytest.fixture(scope="module")
def undisturbed(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    settings = Settings(data=folder, weights=weights, device="cpu", max_rows=8, threads=1)
    output = Sampling(settings, folder / "samples.npz", *RUN).end()
    assert (folder / "samples.npz").exists(), output
    return (folder / "samples.npz").read_bytes()


def test_image_is_the_same_whatever_the_count_the_classes_and_the_rows(own_settings: Settings, tmp_path: Path) -> None:
    sampled(own_settings, tmp_path / "few.npz", count=20, classes="0,3")
    sampled(own_settings, tmp_path / "many.npz", count=40, classes="0,3,7,7")
    with np.load(tmp_path / "few.npz") as few, np.load(tmp_path / "many.npz") as many:
        for label in (0, 3):
            of_few, of_many = few["arr_0"][few["arr_1"] == label], many["arr_0"][many["arr_1"] == label]
            assert np.array_equal(of_few, of_many)
        assert len(np.unique(many["arr_0"], axis=0)) == 40


def test_every_setting_is_an_option(own_settings: Settings, tmp_path: Path) -> None:
    output = Sampling(own_settings, tmp_path / "samples.npz", "--local", "--count", "2", *EVERY).end()
    assert (tmp_path / "samples.npz").exists(), output
    made_of = json.loads((tmp_path / "samples.npz.json").read_text())["parameters"]
    assert made_of["guidance_interval"] == [100, 900]
    assert [made_of[name] for name in ("guidance_schedule", "time_grid", "thresholding")] == [
        "entropy",
        "uniform",
        "dynamic",
    ]
    assert made_of["upsample"] == {
        "steps": 2,
        "sampler": "ddim",
        "eta": 0.0,
        "strength": 0.5,
        "time_grid": "uniform",
        "thresholding": "none",
    }


def test_two_devices_make_the_bytes_that_one_makes(own_settings: Settings, tmp_path: Path) -> None:
    sampled(own_settings, tmp_path / "one.npz")
    sampled(own_settings, tmp_path / "two.npz", "cpu", "cpu:0")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    kept = [json.loads((tmp_path / f"{name}.npz.json").read_text()) for name in ("one", "two")]
    assert kept[0]["numerics"] == kept[1]["numerics"]


def test_device_that_is_not_there_fails_the_run_in_one_line(own_settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BulkError, match=r"cuda:99.*ADM_DEVICE"):
        sampled(own_settings, tmp_path / "samples.npz", "cpu", "cuda:99")
    sampled(own_settings, tmp_path / "samples.npz")


@pytest.mark.parametrize(("steps", "loads"), [(0, False), (40, True)])
def test_too_little_memory_at_the_start_or_later_is_reported_in_one_line(
    own_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, loads: bool
) -> None:
    left = iter(range(steps))

    def take_few_steps(*given: Tensor) -> tuple[Tensor, ...]:
        if next(left, None) is None:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")
        return take_step(*given)

    monkeypatch.setattr(stage, "take_step", take_few_steps)  # a CPU raises no such error
    with pytest.raises(BulkError) as caught:
        sampled(own_settings, tmp_path / "samples.npz", steps=50)
    assert str(caught.value).startswith("cpu: its memory does not suffice")
    assert "\n" not in str(caught.value)
    assert bool(json.loads((tmp_path / "samples.npz.json").read_text())["numerics"]) is loads


def test_upsampled_images_are_of_the_upsamplers_size(own_settings: Settings, tmp_path: Path) -> None:
    sampled(own_settings, tmp_path / "samples.npz", count=3, upsample=None)
    with np.load(tmp_path / "samples.npz") as archive:
        assert archive["arr_0"].shape == (3, 16, 16, 3)


def test_run_says_at_once_that_it_loads_also_where_nobody_sees_the_bar(own_settings: Settings, tmp_path: Path) -> None:
    output = Sampling(own_settings, tmp_path / "samples.npz", "--local", "--count", "1", "--steps", "3").end()
    assert output.splitlines()[0] == "loading demo ..."


def test_pipeline_that_is_not_there_is_refused_by_its_option(own_settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BulkError, match=r"^--model: .*'unicorn'; there are"):
        sampled(own_settings, tmp_path / "samples.npz", model="unicorn")


def test_auto_is_every_device_there_is() -> None:
    assert devices("cuda:1") == ["cuda:1"]
    assert devices("auto")


@pytest.mark.parametrize(("on", "kills"), [((), (1, 3)), (("--devices", "cpu,cpu:0"), (1,))], ids=["one", "two"])
def test_run_killed_repeatedly_ends_with_the_bytes_of_one_that_was_not(
    own_settings: Settings, tmp_path: Path, undisturbed: bytes, on: tuple[str, ...], kills: tuple[int, ...]
) -> None:
    out = tmp_path / "samples.npz"
    for parts in kills:
        run_ = Sampling(own_settings, out, *RUN, *on)
        run_.wait_parts(parts)
        run_.kill()
        assert not out.exists()
    output = Sampling(own_settings, out, *RUN, *on).end()
    assert out.read_bytes() == undisturbed, output


def test_processes_of_devices_end_with_a_run_that_is_killed(own_settings: Settings, tmp_path: Path) -> None:
    run_ = Sampling(own_settings, tmp_path / "samples.npz", *RUN, "--devices", "cpu,cpu:0")
    run_.wait_parts(1)
    group = os.getpgid(run_.process.pid)
    run_.kill()
    eventually(lambda: not members(group), "its processes end")


def test_stopped_run_leaves_what_is_finished_and_says_how_to_continue(
    own_settings: Settings, tmp_path: Path, undisturbed: bytes
) -> None:
    out = tmp_path / "samples.npz"
    for number, parts in ((signal.SIGINT, 1), (signal.SIGTERM, 2)):
        run_ = Sampling(own_settings, out, *RUN)
        run_.wait_parts(parts)
        output = run_.kill(number)
        assert run_.process.returncode == 130
        assert "of 96 images; the same command resumes" in output.splitlines()[-1]
        assert run_.parts >= parts
    output = Sampling(own_settings, out, *RUN).end()
    assert out.read_bytes() == undisturbed, output


def members(group: int) -> list[int]:
    """Processes of a group that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(pgrp) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def test_base_samples_are_enlarged_each_by_itself(own_settings: Settings, tmp_path: Path) -> None:
    sampled(own_settings, tmp_path / "base.npz", count=20, classes="none")
    alone = {"base_samples": tmp_path / "base.npz", "steps": None, "upsample": None, "upsampler": {"steps": 2}}
    sampled(own_settings, tmp_path / "few.npz", count=18, **alone)
    sampled(own_settings, tmp_path / "all.npz", count=None, **alone)
    with np.load(tmp_path / "few.npz") as few, np.load(tmp_path / "all.npz") as every:
        assert every["arr_0"].shape[0] == 20
        assert np.array_equal(few["arr_0"], every["arr_0"][:18])
        assert len(np.unique(every["arr_0"], axis=0)) == 20
