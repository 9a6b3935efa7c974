"""`adm evaluate` as a user runs it: figures from pictures on disk, and one line for whatever cannot be measured."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from datasets.shapes import render_set
from engine.trajectory import StagePlan
from evaluation import stack_report
from jobs.settings import Settings
from models.networks import dinov2
from models.networks.dinov2 import DinoV2, TransformerSize
from models.networks.inception import Inception
from tests.evaluation.test_stack_report import add_judge, write_run
from tests.models.samples import MANIFEST, write_manifest, write_stack
from tests.training.samples import write_npz
from tests.warm import EVALUATION, run_warm
from worker.kept_sweeps import kept_sweeps, weights_of
from worker.local_worker import pipeline_of

ROOT = Path(__file__).parents[2]
METRICS = {
    *("fid", "sfid", "inception_score", "kid"),
    *("precision", "recall", "density", "coverage", "authenticity"),
}
IMAGES = 40


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ADM_DATA, where features are kept meanwhile; and few rows, as their probes take most of a pipeline's start."""
    monkeypatch.setenv("ADM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ADM_MAX_ROWS", "4")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of renders as official .npz files, the first also as a folder of PNGs, and statistics of the second."""
    folder = tmp_path_factory.mktemp("sets")
    for name, seed in (("a", 5), ("b", 6)):
        pixels = render_set(IMAGES, seed, 32)[0].permute(0, 2, 3, 1).numpy()
        np.savez(folder / f"{name}.npz", pixels)
        if name == "a":
            (folder / "a").mkdir()
            for index, each in enumerate(pixels):
                Image.fromarray(each).save(folder / "a" / f"{index:03d}.png")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ADM_DATA", str(folder / "data"))
        assert run("stats", str(folder / "b.npz"), "--out", str(folder / "b-stats.npz"))[0] == 0
    return folder


def run(*arguments: str) -> tuple[int, str, str]:
    """Status, output and errors; of a process of its own where a pipeline is loaded, which configures its logs."""
    if any(each.startswith("local:") for each in arguments):
        return run_warm("cli", ["evaluate", *arguments], os.environ, EVALUATION)
    result = CliRunner().invoke(app, ["evaluate", *arguments])
    return result.exit_code, result.stdout, result.stderr


def report(folder: Path, samples: str, reference: str) -> dict[str, Any]:
    target = folder / "report.json"
    status, _, told = run(str(folder / samples), "--against", str(folder / reference), "--json", str(target))
    assert status == 0, told
    read: dict[str, Any] = json.loads(target.read_text())
    return read


def refused(*arguments: str) -> str:
    status, printed, told = run(*arguments)
    assert (status, printed) == (1, "")
    assert told.startswith("adm: ")
    (line,) = (each for each in told.splitlines() if each.startswith("adm: "))
    assert told.endswith(f"{line}\n")
    return line


def test_all_figures_are_there_with_intervals_and_what_they_depend_on(sets: Path) -> None:
    found = report(sets, "a.npz", "b.npz")
    assert set(found["metrics"]) == METRICS
    assert all(each["low"] <= each["value"] <= each["high"] for each in found["metrics"].values())
    assert found["samples"]["images"] == IMAGES
    assert found["extractor"]["sha256"]
    assert set(found["versions"]) == {"adm-serve", "torch", "python"}
    assert {"cpu", "threads"} <= set(found["machine"])
    assert any("40 images are few for FID in 128 dimensions" in note for note in found["notes"])


def test_figures_do_not_depend_on_the_form_of_a_set(sets: Path) -> None:
    pictures, statistics = report(sets, "a.npz", "b.npz"), report(sets, "a", "b-stats.npz")
    assert statistics["metrics"] == pictures["metrics"]
    assert statistics["reference"]["sha256"] == pictures["reference"]["sha256"]


def test_nothing_is_kept_once_all_is_measured(sets: Path, data: Path) -> None:
    assert run(str(sets / "a"), "--against", str(sets / "b.npz"))[0] == 0
    assert list((data / "evaluate").iterdir()) == []


def test_a_reference_that_is_the_sample_itself_is_reported(sets: Path) -> None:
    _, printed, _ = run(str(sets / "a"), "--against", str(sets / "a.npz"))
    assert "note: the reference is the samples themselves, picture for picture" in printed


def test_renders_are_of_the_size_of_the_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "large.npz", render_set(4, 5, 40)[0].permute(0, 2, 3, 1).numpy())
    target = tmp_path / "report.json"
    status, _, told = run(
        str(tmp_path / "large.npz"), "--against", "shapes?images=4&seed=7", "--json", str(target), "--strict"
    )
    assert status == 0, told
    assert json.loads(target.read_text())["reference"]["size"] == "40x40"


def test_compare_distinguishes_a_difference_from_chance(sets: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "noise.npz", np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8))
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    for samples, target in ((sets / "a.npz", ours), (tmp_path / "noise.npz", theirs)):
        assert run(str(samples), "--against", str(sets / "b.npz"), "--json", str(target))[0] == 0
    _, same, _ = run("compare", str(ours), str(ours))
    _, other, _ = run("compare", str(ours), str(theirs))
    assert "larger than chance" not in same
    (fid,) = (line for line in other.splitlines() if line.startswith("FID"))
    assert fid.endswith("larger than chance")


def test_reports_against_other_references_are_not_compared(sets: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    for reference, target in (("a.npz", ours), ("b.npz", theirs)):
        assert run(str(sets / "a.npz"), "--against", str(sets / reference), "--json", str(target))[0] == 0
    assert "of different references" in refused("compare", str(ours), str(theirs))
    assert "is no report of adm evaluate --json" in refused("compare", str(ours), str(sets / "a.npz"))


def test_files_that_cannot_be_read_are_counted_or_refused(sets: Path, tmp_path: Path) -> None:
    for each in (sets / "a").iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    _, printed, _ = run(str(tmp_path), "--against", str(sets / "b.npz"))
    assert "note: samples: 1 files could not be read, first " in printed
    line = refused(str(tmp_path), "--against", str(sets / "b.npz"), "--strict")
    assert "broken.png" in line


@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (np.zeros((1, 32, 32, 3), np.uint8), "1 images are too few"),
        (np.zeros((0, 32, 32, 3), np.uint8), "0 images are too few"),
        (np.zeros((9, 16, 16, 3), np.uint8), "takes squares of 32x32 pixels or more"),
        (np.zeros((9, 40, 32, 3), np.uint8), "images are 32x40"),
        (np.zeros((9, 64, 64, 3), np.uint8), "the samples are 64x64 and the reference is 32x32"),
        (np.zeros((9, 32, 32, 3)), "arr_0 is float64"),
    ],
)
def test_pictures_that_cannot_be_measured_are_reported_in_one_line(
    sets: Path, tmp_path: Path, pixels: np.ndarray, told: str
) -> None:
    np.savez(tmp_path / "set.npz", pixels)
    assert told in refused(str(tmp_path / "set.npz"), "--against", str(sets / "b.npz"))


@pytest.mark.parametrize(
    ("samples", "more", "told"),
    [
        ("none", (), "none: there is no such file or folder"),
        ("shapes?image=9", (), "there is no setting 'image'; there are images, seed, size"),
        ("shapes?images=1", (), "images=1: must be a whole number, 2 or more"),
        ("shapes?images", (), "settings are KEY=VALUE"),
        ("shapes?seed=", (), "seed has no value"),
        ("shapes?seed=1&seed=2", (), "a setting is given twice"),
        ("local:demo?steps=x", (), "steps=x: must be a whole number"),
        ("local:demo?scale=x", (), "scale=x: must be a number"),
        ("local:demo?upsample=maybe", (), "upsample=maybe: must be yes or no"),
        ("shapes", ("--extractor", "inception"), "there are judge, judge:FILE, inception:FILE, dinov2:FILE"),
        ("shapes", ("--extractor", "inception:weights/demo/judge.safetensors"), "lacks 472 key"),
        ("shapes", ("--extractor", "dinov2:weights/demo/judge.safetensors"), "is no DINOv2: its pos_embed has 0"),
        ("shapes", ("--extractor", "dinov2:none.pth"), "none.pth"),
        ("shapes", ("--extractor", "judge:weights/demo/base.safetensors"), "contains a UNet, expected a Judge"),
    ],
)
def test_invalid_sources_are_reported_in_one_line(samples: str, more: tuple[str, ...], told: str) -> None:
    assert told in refused(samples, "--against", "shapes?images=2", *more)


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
        status, _, told = run(str(sets / "a"), "--against", str(reference), *extractor, *targets)
        assert status == 0, told
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert set(found["pictures"]["metrics"]) == METRICS - {"sfid", "inception_score"}
    assert found["statistics"]["metrics"] == found["pictures"]["metrics"]
    assert found["pictures"]["extractor"]["features"] == 24
    page = (tmp_path / "pictures.html").read_text()
    assert "Nearest reference images" in page
    assert "Best and worst by class" not in page
    line = refused(str(sets / "a"), "--against", str(sets / "b-stats.npz"), *extractor)
    assert "was made by another extractor" in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("none", "--against", "shapes"), "weights/none"),
        (("demo", "--against", "none"), "is none a training run?"),
        (("demo", "--against", "shapes?images=9"), "there is no setting 'images'; there are seed"),
        (
            ("fashion", "--against", "shapes"),
            "shapes: the classes of fashion are no shapes (T-shirt, trouser, pullover",
        ),
        (("demo", "--against", "shapes", "--json", "none/report.json"), "--json none/report.json: is a folder"),
    ],
)
def test_stack_that_cannot_be_measured_is_told_in_one_line(arguments: tuple[str, ...], told: str) -> None:
    assert told in refused("stack", *arguments)


@pytest.mark.slow
def test_stack_is_measured_beside_the_held_out_images_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_report, "MAX_ROWS", 4)
    monkeypatch.setattr(stack_report, "WAYS", {"ddim_eta_0": StagePlan("base", "ddim", 2)})
    monkeypatch.setenv("ADM_WEIGHTS", str(tmp_path))
    add_judge(write_stack(tmp_path / "tiny"), 3)
    write_manifest(tmp_path / "tiny", MANIFEST | {"classes": ["0", "1", "2"]})  # an .npz has no names
    held_out = write_run(tmp_path / "run", write_npz(tmp_path / "images.npz", 150), 128)
    target = tmp_path / "judge.json"
    arguments = ("--against", str(held_out), "--images", "25", "--json", str(target))
    status, printed, told = run("stack", "tiny", *arguments)
    assert status == 0, told
    assert "tiny, ddim_eta_0, scale 1" in printed
    assert json.loads(target.read_text())["reference"] == {"source": str(held_out), "images": 25}


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    target = str(tmp_path / "none" / "x.npz")
    assert f"--out {target}: " in refused("stats", "nothing", "--out", target)
    assert f"--json {tmp_path}: " in refused("nothing", "--against", "nothing", "--json", str(tmp_path))


def test_a_reference_must_be_there_already() -> None:
    assert "only SAMPLES may be local:... or service:..." in refused("shapes", "--against", "local:demo")


def test_moments_alone_are_no_samples_but_a_reference(sets: Path, tmp_path: Path) -> None:
    with np.load(sets / "b-stats.npz") as arrays:
        np.savez(tmp_path / "official.npz", **{name: arrays[name] for name in ("mu", "sigma", "mu_s", "sigma_s")})
    official = str(tmp_path / "official.npz")
    status, printed, _ = run(str(sets / "a.npz"), "--against", official)
    assert (status, "FID" in printed, "precision " in printed) == (0, True, False)
    assert "must be pictures, or have features" in refused(official, "--against", str(sets / "a.npz"))


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
        status, _, told = run(*arguments, "--extractor", extractor, "--json", str(target))
        assert status == 0, told
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


@pytest.mark.slow
def test_a_pipeline_is_sampled_in_this_process(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    samples = "local:demo?images=10&steps=2&upsample=no&seed=3"
    status, printed, told = run(samples, "--against", "shapes?images=20", "--json", str(target))
    assert status == 0, told
    found = json.loads(target.read_text())
    assert found["samples"]["source"] == samples
    assert found["samples"]["made"]["parameters"]["steps"] == 2
    assert found["samples"]["size"] == found["reference"]["size"] == "32x32"
    assert "precision" in printed


@pytest.mark.process
@pytest.mark.slow
def test_a_sweep_makes_in_one_engine_what_single_evaluations_measure(tmp_path: Path) -> None:
    target, page = tmp_path / "sweep.json", tmp_path / "sweep.html"
    settings = ("--scale", "0,4", "--steps", "1,2", "--sampler", "ddim", "--images", "10")
    swept = ["evaluate", "sweep", "demo", "--against", "shapes?images=20", "--out", str(target), "--report", str(page)]
    status, _, told = run_warm("cli", [*swept, *settings], os.environ, EVALUATION)
    assert status == 0, told
    found = json.loads(target.read_text())
    assert [(each["scale"], each["steps"]) for each in found["cells"]] == [(0, 1), (4, 1), (0, 2), (4, 2)]
    single = tmp_path / "single.json"
    source = "local:demo?images=10&steps=2&scale=4&sampler=ddim&upsample=no"
    status, _, told = run(source, "--against", "shapes?images=20", "--json", str(single))
    assert status == 0, told
    assert found["cells"][3]["sha256"] == json.loads(single.read_text())["samples"]["sha256"]
    assert set(found["recommended"]) == {"quality", "speed", "precision", "recall"}
    assert page.read_text().startswith("<!doctype html>")
    assert found["weights"] == list(weights_of(pipeline_of(Settings(weights=ROOT / "weights"), "demo")))


def sweep_report(**changes: Any) -> dict[str, Any]:
    """The parts of a sweep's report that are kept, of the shipped weights."""
    figure = {"value": 0.123456789, "low": None, "high": None}
    cell = {"scale": 2.0, "steps": 5, "sampler": "ddim", "eta": 0.0, "evaluations": 5, "sha256": "x"}
    return {
        "pipeline": "demo",
        "weights": list(weights_of(pipeline_of(Settings(weights=ROOT / "weights"), "demo"))),
        "images": 400,
        "made_on": "2026-11-29",
        "reference": {"source": "shapes?images=20"},
        "extractor": {"name": "judge"},
        "cells": [cell | {"metrics": dict.fromkeys(("fid", "precision", "recall", "kid"), figure)}],
    } | changes


def keep(folder: Path, *reports: dict[str, Any]) -> tuple[int, str, str]:
    paths = [folder / f"{number}.json" for number in range(len(reports))]
    for path, each in zip(paths, reports, strict=True):
        path.write_text(json.dumps(each))
    return run("keep", *map(str, paths))


@pytest.fixture
def own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights of the test's own, with the shipped stack."""
    shutil.copytree(ROOT / "weights" / "demo", tmp_path / "weights" / "demo")
    (tmp_path / "weights" / "demo" / "demo.sweep.json").unlink(missing_ok=True)
    monkeypatch.setenv("ADM_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def test_kept_sweep_is_beside_its_weights_where_a_worker_finds_it(own_weights: Path, tmp_path: Path) -> None:
    first = sweep_report()
    other = sweep_report(cells=[first["cells"][0] | {"steps": 25}], made_on="2026-11-30")
    status, printed, told = keep(tmp_path, first, other)
    assert (status, printed.strip()) == (0, str(own_weights / "demo" / "demo.sweep.json")), told
    (sweep,) = kept_sweeps(own_weights, [pipeline_of(Settings(weights=own_weights), "demo")])
    assert [(each.steps, each.fid.value) for each in sweep.cells] == [(5, 0.12346), (25, 0.12346)]
    assert (sweep.images, sweep.reference, sweep.made_on) == (400, "shapes?images=20", "2026-11-30")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights": ["of", "others"]}, "was made with other weights than 'demo' has now"),
        ({"cells": []}, "is not the report of a sweep"),
        ({"cells": [{"metrics": {}}]}, "has no 'fid'"),
        ({"images": "many"}, "is not the report of a sweep"),
    ],
)
def test_report_that_is_no_sweep_of_these_weights_is_not_kept(
    own_weights: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    status, _, line = keep(tmp_path, sweep_report(**changes))
    assert status == 1
    assert told in line
    assert not (own_weights / "demo" / "demo.sweep.json").exists()


def test_sweeps_of_different_images_are_not_joined(own_weights: Path, tmp_path: Path) -> None:
    status, _, line = keep(tmp_path, sweep_report(), sweep_report(images=500))
    assert (status, "the sweeps have different images: 400, 500" in line) == (1, True)


@pytest.mark.parametrize(
    ("option", "given", "told"),
    [
        ("--scale", "0,x", "--scale 0,x: must be numbers, separated by commas"),
        ("--steps", "1.5", "--steps 1.5: must be numbers, separated by commas"),
        ("--against", "local:demo", "must be an existing set"),
    ],
)
def test_invalid_settings_of_a_sweep_are_reported_in_one_line(
    tmp_path: Path, option: str, given: str, told: str
) -> None:
    options = {"--against": "shapes?images=4", "--out": str(tmp_path / "s.json")} | {option: given}
    assert told in refused("sweep", "demo", *(each for pair in options.items() for each in pair))


def test_a_report_is_one_page_that_names_everything_and_loads_nothing(sets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<b>pictures"
    folder.mkdir()
    for each in (sets / "a").iterdir():
        (folder / each.name).write_bytes(each.read_bytes())
    page = tmp_path / "page.html"
    assert run(str(folder), "--against", str(sets / "b.npz"), "--report", str(page))[0] == 0
    text = page.read_text()
    assert "<b>pictures" not in text
    assert "&lt;b&gt;pictures" in text
    for section in ("Samples", "Best and worst by class", "Nearest reference images", "Published", "Computed by"):
        assert f"<h2>{section}</h2>" in text
    assert not re.search(r"(?:src|href)=\"(?!data:)", text)
