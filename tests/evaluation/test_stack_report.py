"""A stack is measured with every sampler by its own judge, beside real images that no network was trained on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation import stack_report
from evaluation.report import Watch
from evaluation.stack_report import EVALUATIONS, JUDGE, SAMPLER_PLANS, RealImages, StackReport, halves, rendered, table
from models.checkpoints.network_file import WeightsError, save_network
from models.networks.judge import Judge, JudgeConfig
from models.stack import file_hash
from models.stack_plan import MANIFEST, read_stack
from runfolder.folder import CONFIG, RunFolderError
from tests.models.samples import CLASSES, write_stack
from tests.training.samples import config, images, write_npz
from training.config import ConfigError
from training.reference_images import held_out_images
from vocabulary.sampling import SAMPLERS

IMAGES = 25


@pytest.fixture(autouse=True)
def few_rows_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """No option sets them. The tests' promises do not depend on them, and with the real ones a test takes minutes."""
    monkeypatch.setattr(stack_report, "MAX_ROWS", 4)
    monkeypatch.setattr(
        stack_report, "SAMPLER_PLANS", {sampler: replace(plan, num_steps=2) for sampler, plan in SAMPLER_PLANS.items()}
    )


@pytest.fixture(scope="module")
def judged_stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny stack with a judge, all of random weights."""
    return add_judge(write_stack(tmp_path_factory.mktemp("weights") / "tiny"), len(CLASSES))


def add_judge(folder: Path, classes: int) -> Path:
    torch.manual_seed(0)
    judge = JudgeConfig(image_size=8, num_classes=classes, widths=(32,))
    save_network(folder / JUDGE, Judge(judge).state_dict(), judge, dtype=torch.float32)
    return folder


def real_images() -> RealImages:
    small, large = images(2 * IMAGES), images(4, image_size=16)
    return RealImages("photos", small.images, small.class_labels, CLASSES, large.images)


def report_of(folder: Path, real: RealImages) -> dict[str, Any]:
    found = StackReport(read_stack(folder), real, IMAGES, Watch(), lambda doubt: None).measure()
    read: dict[str, Any] = json.loads(json.dumps(found))
    return read


def test_plans_are_every_sampler_with_equally_many_evaluations() -> None:
    assert {plan.sampler for plan in SAMPLER_PLANS.values()} == set(SAMPLERS)
    assert {plan.num_evaluations for plan in SAMPLER_PLANS.values()} == {EVALUATIONS}


def test_halves_have_the_classes_in_equal_shares_whatever_the_order_of_the_images() -> None:
    for labels in (torch.arange(40) % 10, torch.arange(40) // 4):
        one, other = halves(labels)
        assert sorted([*one.tolist(), *other.tolist()]) == list(range(40))
        assert labels[one].bincount().tolist() == labels[other].bincount().tolist() == [2] * 10


@pytest.mark.slow
def test_report_has_every_pipeline_with_every_sampler_and_the_real_images_beside(judged_stack: Path) -> None:
    found = report_of(judged_stack, real_images())
    assert set(found["pipelines"]) == {"tiny", "tiny-uncond"}
    for samplers in found["pipelines"].values():
        assert set(samplers) == set(SAMPLER_PLANS)
    for figures in found["pipelines"]["tiny"].values():
        low, high = figures["agreement_95"]
        assert figures["images"] == IMAGES
        assert low <= figures["agreement"] <= high
        assert {"fid", "precision", "recall", "inception_score", "sharpness"} <= set(figures)
    for figures in found["pipelines"]["tiny-uncond"].values():
        best = figures["best"]
        assert figures["scale_0"]["guidance_scale"] == 0
        assert figures["sweep"][f"{best['guidance_scale']:g}"] == max(figures["sweep"].values())
        assert best["images"] == figures["scale_0"]["images"] == 10
    assert found["judge_on_reference"]["images"] == 2 * IMAGES
    assert found["reference"] == {"source": "photos", "images": IMAGES}
    assert set(found["upsampled"]["sharpness_mean_abs_laplacian"]) == {"upsampled", "bicubic", "reference"}
    assert found["hashes"] == {path.stem: file_hash(path) for path in judged_stack.glob("*.safetensors")}
    lines = list(table(found))
    upsampled = 2  # lines: before and after the upsampler
    assert sum(line.startswith("tiny, ") for line in lines) == len(SAMPLER_PLANS) + upsampled
    assert sum(line.startswith("tiny-uncond, ") for line in lines) == 2 * len(SAMPLER_PLANS)


@pytest.mark.slow
def test_stack_without_a_classifier_or_an_upsampler_is_measured_without_them(
    judged_stack: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(judged_stack, tmp_path / "plain"))
    manifest = json.loads((folder / MANIFEST).read_text())
    for network in ("classifier", "upsampler"):
        del manifest[network]
        (folder / f"{network}.safetensors").unlink()
    for pipeline in manifest["pipelines"].values():
        pipeline |= {"guidance_scale": 0, "upsampling": None}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    found = report_of(folder, replace(real_images(), large=None))
    assert found["upsampled"] is None
    assert all("best" not in figures for figures in found["pipelines"]["tiny-uncond"].values())
    assert len(list(table(found))) == 2 + 2 * len(SAMPLER_PLANS)


def test_judge_or_real_images_of_other_classes_are_refused(judged_stack: Path, tmp_path: Path) -> None:
    folder = add_judge(Path(shutil.copytree(judged_stack, tmp_path / "tiny")), 5)
    with pytest.raises(ValueError, match=r"judge\.safetensors: has 5 classes, and the stack tiny has 3"):
        report_of(folder, real_images())
    other = replace(real_images(), class_names=("red", "blue", "green"))
    with pytest.raises(
        ValueError, match=r"photos: its classes \(red, blue, green\) are not those of .* tiny \(red, gre"
    ):
        report_of(judged_stack, other)
    with pytest.raises(ValueError, match="shapes: the classes of tiny are no shapes"):
        rendered("shapes", 0, read_stack(judged_stack), IMAGES)


def test_few_real_images_that_lack_the_last_class_are_not_refused(judged_stack: Path) -> None:
    real = real_images()
    few = replace(real, class_labels=real.class_labels.clamp(max=1))
    StackReport(read_stack(judged_stack), few, IMAGES, Watch(), lambda doubt: None)


def test_stack_without_a_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"judge\.safetensors"):
        report_of(write_stack(tmp_path / "tiny"), real_images())


def write_run(folder: Path, data: Path, held_out_below: int) -> Path:
    folder.mkdir()
    given = config(data={"path": str(data), "held_out_below": held_out_below})
    (folder / CONFIG).write_text(given.model_dump_json())
    return folder


def test_held_out_images_are_of_all_classes_even_if_the_data_are_sorted_by_class(tmp_path: Path) -> None:
    """The first of them would be of one class, and every distance to them wrong."""
    data = images(240)
    by_class = data.class_labels.argsort(stable=True)
    pixels, labels = data.images[by_class], data.class_labels[by_class]
    np.savez(tmp_path / "sorted.npz", pixels.permute(0, 2, 3, 1).numpy(), labels.numpy())
    found = held_out_images(write_run(tmp_path / "run", tmp_path / "sorted.npz", 128), 60)
    assert len(found) == 60
    assert min(found.class_labels.bincount(minlength=3).tolist()) > 10
    assert len({each.numpy().tobytes() for each in found.images}) == 60


def test_run_that_held_out_too_few_images_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", write_npz(tmp_path / "images.npz", 24), 0)
    with pytest.raises(ConfigError, match="held_out_below = 0: 0 images were held out of training, and 8 are needed"):
        held_out_images(run, 8)
    with pytest.raises(RunFolderError, match=r"is .* a training run"):
        held_out_images(tmp_path, 8)
