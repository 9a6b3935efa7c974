"""A run's folder keeps its last good state, belongs to one run, and is refused in one line to another."""

import dataclasses
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from diffusion.process import Process
from diffusion.schedule import Schedule
from models.checkpoint import WeightsError
from tests.models.samples import CLASSIFIER
from tests.training.samples import NETWORK, data, plan, task
from tests.training.test_loop import assert_same, finish
from training.data import LabelledImages
from training.loop import STATE_FILE, Run, Task
from training.packing import pack
from training.sole import sole_run
from training.tasks import ClassifierTask, DiffusionTask


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder whose run has taken two steps."""
    ticks = Run(task(), plan(tmp_path, 4)).ticks()
    assert [next(ticks).step for _ in range(2)] == [1, 2]
    ticks.close()  # type: ignore[attr-defined]  # a generator, announced as an iterator
    return tmp_path


@pytest.mark.parametrize("learning_rate", [1e30, 1e4])
@pytest.mark.parametrize("ends", ["by itself", "at a save", "interrupted"])
def test_run_that_diverges_leaves_its_last_good_state_and_goes_on_at_a_lower_rate(
    begun: Path, tmp_path_factory: pytest.TempPathFactory, learning_rate: float, ends: str
) -> None:
    good = (begun / STATE_FILE).read_bytes()
    save_seconds = 0 if ends == "at a save" else 1e9
    wild = dataclasses.replace(plan(begun, 4, save_seconds=save_seconds), learning_rate=learning_rate)
    ticks = Run(task(), wild).ticks()
    if ends == "interrupted":
        next(ticks)
    with pytest.raises(FloatingPointError) as refused:
        ticks.close() if ends == "interrupted" else list(ticks)  # type: ignore[attr-defined]  # as above
    assert " at step 3; lower the learning rate, which is" in str(refused.value)
    assert str(refused.value).endswith("the state of step 2 is kept")
    assert (begun / STATE_FILE).read_bytes() == good
    whole = finish(Run(task(), plan(tmp_path_factory.mktemp("whole"), 4)))
    assert_same(finish(Run(task(seed=9), plan(begun, 4))), whole)


def test_run_that_begins_at_trained_weights_may_have_harder_batches_later(begun: Path) -> None:
    run = Run(task(), plan(begun, 4))
    run.first_loss = 1e-6  # of an easy batch
    assert finish(run).step == 4


def of_classes(*names: str) -> Task:
    images = data()
    named = LabelledImages(images.images, images.class_labels % len(names), names)
    network = dataclasses.replace(NETWORK, num_classes=len(names) + 1)
    return DiffusionTask(network, Process(Schedule.named("cosine", 1000)), named, batch_size=4)


def classifier() -> Task:
    return ClassifierTask(CLASSIFIER, Process(Schedule.named("cosine", 1000)), data(), batch_size=4)


@pytest.mark.parametrize(
    ("other", "changes", "said"),
    [
        (lambda: of_classes("red", "green", "ant"), {}, "has classes red, green, blue, and not red, green, ant"),
        (lambda: of_classes("red", "green"), {}, "has classes red, green, blue, and not red, green"),
        (classifier, {}, "has task DiffusionTask, and not ClassifierTask"),
        (task, {"seed": 6}, "has seed 5, and not 6"),
        (task, {"batch_size": 8}, "has batch-size 4, and not 8"),
    ],
)
def test_run_of_something_else_is_refused_by_the_field(
    begun: Path, other: Callable[[], Task], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{begun}: its run {said}; give another --out$"):
        Run(other(), dataclasses.replace(plan(begun, 4), **changes))


def test_state_that_cannot_be_read_is_one_line(begun: Path) -> None:
    (begun / STATE_FILE).write_bytes((begun / STATE_FILE).read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"state\.pt: cannot be read \(\w+\); delete it to start anew$"):
        Run(task(), plan(begun, 4))


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond a few blocks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_state_that_the_disk_does_not_take_leaves_the_last_and_no_part(
    begun: Path, request: pytest.FixtureRequest
) -> None:
    before = {each.name: each.read_bytes() for each in begun.iterdir()}
    run = Run(task(), plan(begun, 4))
    request.getfixturevalue("full_disk")
    said = rf"^{begun}: the state of step 4 was not saved \(the disk may be full\); that of step 2 is kept$"
    with pytest.raises(OSError, match=said):
        finish(run)
    assert {each.name: each.read_bytes() for each in begun.iterdir()} == before


def test_folder_is_held_by_one_run(tmp_path: Path) -> None:
    with sole_run(tmp_path / "run"), pytest.raises(ValueError, match="another adm train works here"):
        sole_run(tmp_path / "run").__enter__()
    with sole_run(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_pack_of_no_runs_is_an_error_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"nothing: holds no run; diffusion, classifier, upsampler, judge are looked"
    ):
        pack(tmp_path / "nothing", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_recipe_of_the_readme_trains_packs_and_refuses_another_seed(tmp_path: Path) -> None:
    def adm(*arguments: str | Path) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["train", *map(str, arguments)])
        return result.exit_code, result.output

    photos, mine = tmp_path / "photos", tmp_path / "runs" / "mine"
    for name in ("cat", "dog"):
        (photos / name).mkdir(parents=True)
        Image.new("RGB", (40, 32), "teal").save(photos / name / "0.webp")
    recipe = ("judge", "--images", photos, "--out", mine / "judge", "--steps", "1", "--batch-size", "2")
    code, output = adm(*recipe)
    assert code == 0, output
    assert output.startswith(f"{photos}: 2 images, 2 classes (cat 1, dog 1); a class for each folder in {photos}\n")
    code, output = adm(*recipe, "--seed", "1")
    assert (code, output.splitlines()[-1]) == (
        1,
        f"adm: {mine}/judge: its run has seed 0, and not 1; give another --out",
    )
    code, output = adm("pack", "--runs", mine, "--out", tmp_path / "weights" / "mine")
    assert code == 0, output
    assert [each.name for each in (tmp_path / "weights" / "mine").iterdir()] == ["judge.safetensors"]
    code, output = adm("pack", "--runs", tmp_path / "none", "--out", tmp_path / "weights" / "none")
    assert (code, output.count("\n")) == (1, 1)
