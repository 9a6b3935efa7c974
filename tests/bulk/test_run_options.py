"""Options of runs: what is refused before anything is made, and which settings a run takes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bulk.errors import BulkError
from tests.bulk.painter import Painter, contents, sampled
from tests.jobs.samples import BASE_ONLY


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": None}, "--count: is required unless --classes is a file"),
        ({"sampler": "euler"}, "--sampler: unknown sampler 'euler'"),
        ({"guidance_scale": 51.0}, "--guidance-scale: "),
        ({"steps": 0}, "--steps: "),
        ({"eta": 0.5, "sampler": "ddpm"}, "--eta: applies only to ddim"),
        ({"classes": "none", "guidance_scale": 2.0}, "--guidance-scale: must be 0 without a class"),
    ],
)
def test_wrong_option_is_refused_by_its_name_before_anything_is_written(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(BulkError) as caught:
        sampled(tmp_path / "samples.npz", Painter(), **options)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_class_where_none_is_offered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BulkError, match="--classes: null is not offered"):
        sampled(tmp_path / "samples.npz", Painter(pipeline=BASE_ONLY), classes="none")


def test_file_of_classes_says_how_many_images(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("2\n" * 20)
    sampled(tmp_path / "samples.npz", Painter(), count=None, classes=str(tmp_path / "classes.txt"))
    with np.load(tmp_path / "samples.npz") as archive:
        assert archive["arr_1"].tolist() == [2] * 20
    with pytest.raises(BulkError, match=r"--count 21: --classes .* has classes for 20"):
        sampled(tmp_path / "more.npz", Painter(), count=21, classes=str(tmp_path / "classes.txt"))


@pytest.mark.parametrize("name", ["b.txt", "samples.png", "samples.npz.gz"])
def test_output_of_another_suffix_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(BulkError, match=rf"^--out .*{name}: ends in \.\w+; give a file's name that ends in \.npz"):
        sampled(tmp_path / name, Painter())
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_there_may_have_a_dot_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "scale-1.5").mkdir()
    sampled(tmp_path / "scale-1.5", Painter(), count=2, classes="none")
    assert list(contents(tmp_path / "scale-1.5")) == ["000000.png", "000001.png"]


def test_output_that_cannot_be_written_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BulkError, match=r"--out .*File exists"):
        sampled(tmp_path / "file" / "samples.npz", Painter())


EVERY: dict[str, Any] = {
    "steps": 9,
    "sampler": "ddim",
    "eta": 0.5,
    "guidance_scale": 2.0,
    "guidance_interval": (100, 900),
    "guidance_schedule": "entropy",
    "time_grid": "uniform",
    "thresholding": "dynamic",
    "upsample": None,
    "upsampler": {
        "steps": 7,
        "sampler": "ddim",
        "eta": 0.25,
        "strength": 0.5,
        "time_grid": "karras",
        "thresholding": "none",
    },
}


def test_every_setting_of_sampling_is_that_of_the_run(tmp_path: Path) -> None:
    sampled(tmp_path / "samples.npz", Painter(), count=2, **EVERY)
    made_of = json.loads((tmp_path / "samples.npz.json").read_text())["parameters"]
    expected = {name: value for name, value in EVERY.items() if name not in ("upsample", "upsampler")}
    assert {name: made_of[name] for name in expected} == expected | {"guidance_interval": [100, 900]}
    assert made_of["upsample"] == EVERY["upsampler"]
    assert made_of["size"] == 64


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"time_grid": "crooked"}, r"--time-grid: "),
        ({"thresholding": "soft"}, r"--thresholding: "),
        ({"guidance_interval": (-1, 5)}, r"--guidance-interval: "),
        ({"upsample": None, "upsampler": {"strength": 2.0}}, r"--upsample-strength: "),
        ({"upsample": False, "upsampler": {"steps": 3}}, r"--no-upsample: contradicts --upsample-steps$"),
    ],
)
def test_wrong_setting_is_named_as_its_option(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BulkError, match=f"^{message}"):
        sampled(tmp_path / "samples.npz", Painter(), **wrong)
    assert list(tmp_path.iterdir()) == []
