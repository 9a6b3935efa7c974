"""A pipeline's determinants: what changes an image changes them, and nothing else does."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.pipeline import Pipeline
from models.checkpoints.network_file import save_network
from models.networks.unet import build_unet
from models.stack import load_stack
from tests.models.samples import MANIFEST, UPSAMPLER, seeded, write_manifest

Manifest = dict[str, Any]


@pytest.fixture
def folder(stack_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stack_folder, tmp_path / "tiny")


def determinants(folder: Path, pipeline: str = "tiny") -> dict[str, Any]:
    stack = load_stack(folder)
    return Pipeline(stack.pipelines[pipeline], stack).determinants


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["base"].update(schedule="linear"),
        lambda manifest: manifest["base"].update(num_timesteps=500),
        lambda manifest: manifest["base"].update(grey=True),
        lambda manifest: manifest["upsampler"].update(predict_xstart=True),
        lambda manifest: manifest["pipelines"]["tiny"].update(conditional=False),
    ],
)
def test_what_the_manifest_says_of_images_counts(folder: Path, change: Callable[[Manifest], None]) -> None:
    before, manifest = determinants(folder), copy.deepcopy(MANIFEST)
    change(manifest)
    write_manifest(folder, manifest)
    assert determinants(folder) != before


def test_defaults_do_not_count_because_requests_have_their_values(folder: Path) -> None:
    before, manifest = determinants(folder), copy.deepcopy(MANIFEST)
    manifest["pipelines"]["tiny"] |= {"guidance_scale": 9, "eps_scale": 1.05, "time_grids": {"ddpm": "uniform"}}
    write_manifest(folder, manifest)
    assert determinants(folder) == before


def test_upsampler_counts_only_for_pipelines_that_use_it(folder: Path) -> None:
    """A job of a pipeline without one resumes on a worker that has none loaded (decision 37)."""
    before, alone = determinants(folder), determinants(folder, "tiny-uncond")
    other = seeded(build_unet(UPSAMPLER), 9).state_dict()
    save_network(folder / "upsampler.safetensors", other, UPSAMPLER, dtype=torch.float16)
    assert determinants(folder) != before
    assert determinants(folder, "tiny-uncond") == alone
