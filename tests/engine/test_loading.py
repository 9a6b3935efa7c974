"""Pipelines of ADM_PIPELINES are found in stacks' folders and official checkpoints, before anything is loaded."""

from pathlib import Path

import pytest
import torch

from engine import loading
from engine.loading import (
    MissingFileError,
    ShortageError,
    UnknownPipelineError,
    choose,
    find_plans,
    load_stacks,
)
from jobs.settings import Settings
from models.checkpoints.network_file import WeightsError
from models.checkpoints.presets import OFFICIAL_PIPELINES
from models.stack import load_plan
from models.stack_plan import official_stacks, read_stack
from tests.models.samples import write_stack
from worker.loading import readable_pipelines

CPU = torch.device("cpu")


def put(weights: Path, *names: str) -> Path:
    """Create empty files under official names; `choose` only checks that they exist."""
    for name in names:
        path = weights / "official" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return weights


def test_every_official_pipeline_is_in_one_stack(tmp_path: Path) -> None:
    names = [name for plan in official_stacks(tmp_path) for name in plan.pipelines]
    assert sorted(names) == sorted(OFFICIAL_PIPELINES)


def test_cascade_and_its_base_are_one_stack_so_that_they_share_batches(tmp_path: Path) -> None:
    put(tmp_path, "64x64_diffusion.pt", "64x64_classifier.pt", "64_256_upsampler.safetensors")
    (plan,) = choose(["adm-64", "adm-64-256"], tmp_path)
    assert plan.upsampler is not None
    assert plan.upsampler.path.name == "64_256_upsampler.safetensors"
    assert len(plan.class_names) == 1000
    assert plan.pipelines["adm-64"].upsampling is None
    assert plan.pipelines["adm-64-256"].guidance_scale == 1.0


def test_base_alone_needs_no_upsampler(tmp_path: Path) -> None:
    put(tmp_path, "64x64_diffusion.pt", "64x64_classifier.pt")
    (plan,) = choose(["adm-64"], tmp_path)
    assert plan.upsampler is None


def test_missing_checkpoint_is_refused_with_its_path_and_the_pipeline(tmp_path: Path) -> None:
    put(tmp_path, "64x64_diffusion.pt", "64x64_classifier.pt")
    with pytest.raises(MissingFileError) as refused:
        choose(["adm-64-256"], tmp_path)
    assert (refused.value.pipeline, refused.value.path.name) == ("adm-64-256", "64_256_upsampler.pt")


def test_unknown_pipeline_is_refused_with_those_there_are(tmp_path: Path) -> None:
    write_stack(tmp_path / "tiny")
    with pytest.raises(UnknownPipelineError) as refused:
        choose(["huge"], tmp_path)
    assert (refused.value.name, refused.value.weights) == ("huge", tmp_path)
    assert {"adm-128", "tiny", "tiny-uncond"} <= set(refused.value.known)


def test_refusal_names_the_folder_that_a_relative_setting_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownPipelineError) as unknown:
        choose(["demo"], Path("weights"))
    assert unknown.value.weights == tmp_path / "weights"
    with pytest.raises(MissingFileError) as missing:
        choose(["adm-64"], Path("weights"))
    assert missing.value.path.is_relative_to(tmp_path / "weights")


def test_uncond_pipeline_is_guided_and_lsun_is_not(tmp_path: Path) -> None:
    plans = {name: plan for plan in official_stacks(tmp_path) for name in plan.pipelines}
    uncond, lsun = plans["adm-256-uncond"], plans["lsun-cat"]
    assert uncond.classifier is not None
    assert uncond.pipelines["adm-256-uncond"].guidance_scale == 10.0
    assert not uncond.pipelines["adm-256-uncond"].conditional
    assert len(uncond.class_names) == 1000
    assert (lsun.classifier, lsun.class_names, lsun.pipelines["lsun-cat"].guidance_scale) == (None, (), 0.0)


def test_network_that_two_stacks_share_is_loaded_once(tmp_path: Path) -> None:
    plan = read_stack(write_stack(tmp_path / "tiny"))
    loaded: dict[Path, torch.nn.Module] = {}
    one, other = load_plan(plan, CPU, loaded), load_plan(plan.only(["tiny-uncond"]), CPU, loaded)
    assert one.base.network is other.base.network
    assert other.upsampler is None


@pytest.mark.slow  # the estimate imports half of torch
def test_too_little_memory_is_reported_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack(tmp_path / "tiny")
    monkeypatch.setattr(loading, "free_bytes", lambda device: 0)  # as of a full machine
    monkeypatch.setattr(loading, "load_plan", None)  # a call would be an error
    with pytest.raises(ShortageError) as refused:
        load_stacks(tmp_path, ["tiny"], 4, CPU)
    assert refused.value.pipelines == ("tiny",)
    assert (refused.value.shortage.max_rows, refused.value.shortage.free_bytes) == (4, 0)


def test_stack_that_fits_is_loaded(tmp_path: Path) -> None:
    write_stack(tmp_path / "tiny")
    (stack,) = load_stacks(tmp_path, ["tiny"], 4, CPU)
    assert set(stack.pipelines) == {"tiny"}


def test_load_ends_with_the_self_check(tmp_path: Path) -> None:
    write_stack(tmp_path / "tiny")
    doubts: list[str] = []
    load_stacks(tmp_path, ["tiny"], 4, CPU, doubts.append)
    assert any(line.startswith("tiny, base: at pure noise its eps agrees with the noise by ") for line in doubts)


def test_damaged_stack_is_named_and_stops_no_other(tmp_path: Path) -> None:
    for name in ("good", "cut"):
        write_stack(tmp_path / name)
    manifest = tmp_path / "cut" / "stack.json"
    manifest.write_text(manifest.read_text().replace('"tiny', '"cut'))
    base = tmp_path / "cut" / "base.safetensors"
    base.write_bytes(base.read_bytes()[:-100])
    (plan,) = choose(["tiny"], tmp_path)
    assert plan.name == "good"
    with pytest.raises(WeightsError, match=r"cut/base\.safetensors: is cut off or damaged"):
        choose(["cut"], tmp_path)
    assert set(find_plans(tmp_path).damaged) == {"cut", "cut-uncond"}


def test_worker_without_a_list_loads_every_stack_that_can_be_read(tmp_path: Path) -> None:
    write_stack(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "stack.json").write_text('{"pipelines": {"bad": {}}}')
    settings = Settings(weights=tmp_path, default_model="tiny")
    assert readable_pipelines(settings) == ("tiny", "tiny-uncond")
    asked = settings.model_copy(update={"pipelines": ("bad", "tiny")})
    assert readable_pipelines(asked) == ("bad", "tiny")
    unusable = Settings(weights=tmp_path, default_model="bad")
    assert "bad" in readable_pipelines(unusable)
