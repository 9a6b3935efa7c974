"""`adm evaluate` in the features of Inception and DINOv2."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.networks import dinov2
from models.networks.dinov2 import DinoV2, TransformerSize
from models.networks.inception import Inception
from tests.cli.evaluations import METRICS, refused, run

pytestmark = pytest.mark.usefixtures("data")


def test_dinov2s_features_give_the_metrics_that_need_no_classes(
    sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = TransformerSize(24, 1, 3)
    monkeypatch.setitem(dinov2.SIZES, size.width, size)
    torch.manual_seed(0)
    torch.save(DinoV2(size).state_dict(), tmp_path / "dinov2.pth")
    extractor = ("--extractor", f"dinov2:{tmp_path / 'dinov2.pth'}")
    assert run("stats", str(sets / "b.npz"), "--out", str(tmp_path / "stats.npz"), *extractor)[0] == 0
    found = {}
    for name, reference in (("pictures", sets / "b.npz"), ("statistics", tmp_path / "stats.npz")):
        targets = ("--json", str(tmp_path / f"{name}.json"), "--report", str(tmp_path / f"{name}.html"))
        status, _, stderr = run(str(sets / "a"), "--against", str(reference), *extractor, *targets)
        assert status == 0, stderr
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert set(found["pictures"]["metrics"]) == METRICS - {"sfid", "inception_score"}
    assert found["statistics"]["metrics"] == found["pictures"]["metrics"]
    assert found["pictures"]["extractor"]["features"] == 24
    page = (tmp_path / "pictures.html").read_text()
    assert "Nearest reference images" in page
    assert "Best and worst by class" not in page
    line = refused(str(sets / "a"), "--against", str(sets / "b-stats.npz"), *extractor)
    assert "was made by another extractor" in line


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inception's weights, drawn, and a reference file as the official ones are: ten pictures, and moments of more."""
    folder = tmp_path_factory.mktemp("official")
    torch.manual_seed(0)
    torch.save(Inception().state_dict(), folder / "inception.pth")
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (10, 32, 32, 3), np.uint8)
    moments = {"mu": np.zeros(2048), "sigma": np.eye(2048), "mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    arrays: dict[str, Any] = {"arr_0": pixels, **moments}
    np.savez(folder / "reference.npz", **arrays)
    np.savez(folder / "samples.npz", generator.integers(0, 256, (8, 32, 32, 3), np.uint8))
    np.savez(folder / "pictures.npz", pixels)
    return folder


@pytest.mark.slow
def test_the_papers_five_scores_against_an_official_reference_file(official: Path, tmp_path: Path) -> None:
    extractor = f"inception:{official / 'inception.pth'}"
    found = {}
    for reference in ("reference", "pictures"):
        arguments = (str(official / "samples.npz"), "--against", str(official / f"{reference}.npz"))
        target = tmp_path / f"{reference}.json"
        status, _, stderr = run(*arguments, "--extractor", extractor, "--json", str(target))
        assert status == 0, stderr
        found[reference] = json.loads(target.read_text())
    ours, pictures = (each["metrics"] for each in found.values())
    assert {"inception_score", "fid", "sfid", "precision", "recall"} <= set(ours)
    assert ours["precision"] == pictures["precision"]
    assert ours["fid"]["value"] != pytest.approx(pictures["fid"]["value"], rel=0.1)  # of the file's own moments
    assert found["reference"]["extractor"]["name"] == "inception"
    assert found["reference"]["reference"]["sha256"] != found["pictures"]["reference"]["sha256"]


@pytest.mark.slow
def test_statistics_of_the_judge_are_refused_for_inception(official: Path, sets: Path) -> None:
    line = refused(
        *(str(official / "samples.npz"), "--against", str(sets / "b-stats.npz")),
        *("--extractor", f"inception:{official / 'inception.pth'}"),
    )
    assert "was made by another extractor, judge.safetensors (" in line
    assert "not inception.pth (" in line
