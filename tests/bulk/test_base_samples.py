"""Base samples from an official .npz into the upsampler: read as numpy reads them, refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bulk.base_samples import name_of, read_base_samples
from bulk.chunks import Chunk
from bulk.errors import BulkError
from jobs.contract.pipelines import PipelineInfo
from tests.bulk.painter import Painter, sampled
from tests.jobs.samples import BASE_ONLY, DEMO

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
LABELLED: PipelineInfo = DEMO.model_copy(
    update={"stages": (DEMO.stages[0], DEMO.stages[1].model_copy(update={"class_conditional": True}))}
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    np.savez(tmp_path / "base.npz", IMAGES, np.arange(40) % 10)
    return tmp_path / "base.npz"


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_images_and_labels_are_those_that_numpy_wrote(tmp_path: Path, dtype: type[np.integer[Any]]) -> None:
    np.savez(tmp_path / "base.npz", IMAGES, (np.arange(40) % 10).astype(dtype))
    samples = read_base_samples(tmp_path / "base.npz")
    assert (samples.count, samples.size) == (40, 32)
    assert samples.labels is not None
    assert list(samples.labels) == [index % 10 for index in range(40)]
    pictures = samples.pictures(Chunk(None, 0, 0, (0, 39)))
    assert pictures == {name_of(index): IMAGES[index].tobytes() for index in (0, 39)}


def test_run_is_of_all_base_samples_and_of_no_others(tmp_path: Path, base: Path) -> None:
    out, options = tmp_path / "out.npz", {"count": None, "upsample": None, "base_samples": base}
    assert "40 images of 64x64" in sampled(out, Painter(), **options)
    assert "arr_1" not in np.load(out)
    (tmp_path / "out.npz").unlink()
    np.savez(base, IMAGES[::-1])
    with pytest.raises(BulkError, match="the run began with base samples"):
        sampled(out, Painter(), **options)


def test_labels_of_base_samples_go_to_an_upsampler_that_takes_them(tmp_path: Path, base: Path) -> None:
    options = {"count": 30, "upsample": None, "base_samples": base}
    sampled(tmp_path / "out.npz", Painter(pipeline=LABELLED), **options)
    assert np.load(tmp_path / "out.npz")["arr_1"].tolist() == [index % 10 for index in range(30)]
    assert json.loads((tmp_path / "out.npz.json").read_text())["parameters"]["classes"] == "of the base samples"


def compressed(path: Path) -> None:
    np.savez_compressed(path, IMAGES)


def floats(path: Path) -> None:
    np.savez(path, IMAGES.astype(np.float32))


def unnamed(path: Path) -> None:
    np.savez(path, images=IMAGES)


def cut_off(path: Path) -> None:
    np.savez(path, IMAGES)
    path.write_bytes(path.read_bytes()[:-100])


def too_many_labels(path: Path) -> None:
    np.savez(path, IMAGES, np.arange(41))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (compressed, r"is not a complete .npz of numpy.savez \(arr_0 is compressed; write it by numpy.savez\)$"),
        (floats, r"arr_0 is <f4 \(40, 32, 32, 3\); uint8 \[N, H, H, 3\] is needed$"),
        (unnamed, r"has no .*arr_0"),
        (cut_off, r"is not a complete .npz of numpy.savez"),
        (too_many_labels, r"has 40 images and 41 labels$"),
        (lambda path: path.write_text("text"), r"is not a complete .npz of numpy.savez"),
        (lambda path: None, r"No such file or directory$"),
    ],
)
def test_what_is_no_base_samples_is_one_line(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path / "base.npz")
    with pytest.raises(BulkError, match=rf"^--base-samples {tmp_path}/base\.npz: .*{message}"):
        read_base_samples(tmp_path / "base.npz")


@pytest.mark.parametrize(
    ("pipeline", "options", "message"),
    [
        (BASE_ONLY, {}, "has no upsampler$"),
        (DEMO, {"classes": "0,3"}, "^--classes 0,3: the upsampler of demo takes no class$"),
        (DEMO, {"count": 41}, "^--count 41: there are base samples for 40$"),
        (DEMO, {"steps": 5}, "^--steps: "),
        (LABELLED, {"base_samples": "unlabelled.npz"}, r"has no arr_1, and the upsampler of demo needs --classes$"),
        (LABELLED, {"base_samples": "others.npz"}, "arr_1 has the class 10, which demo does not have$"),
        (DEMO, {"base_samples": "small.npz"}, "has images of 16 pixels; demo enlarges 32$"),
    ],
)
def test_run_that_cannot_be_is_one_line(
    tmp_path: Path, base: Path, pipeline: PipelineInfo, options: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "unlabelled.npz", IMAGES)
    np.savez(tmp_path / "others.npz", IMAGES, np.arange(40) % 11)
    np.savez(tmp_path / "small.npz", IMAGES[:, ::2, ::2])
    asked = (
        {"count": None, "upsample": None}
        | options
        | {"base_samples": tmp_path / options.get("base_samples", base.name)}
    )
    with pytest.raises(BulkError, match=message):
        sampled(tmp_path / "out.npz", Painter(pipeline=pipeline), **asked)
