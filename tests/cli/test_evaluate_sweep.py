"""`adm evaluate sweep` and `keep`: figures over settings, and their place beside the weights."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.settings import Settings
from tests.cli.evaluations import refused, run
from tests.warm import EVALUATION, run_warm
from worker.kept_sweeps import kept_sweeps, weights_of
from worker.local_worker import pipeline_of

pytestmark = pytest.mark.usefixtures("data")

ROOT = Path(__file__).parents[2]


@pytest.mark.process
@pytest.mark.slow
def test_a_sweep_makes_in_one_engine_what_single_evaluations_measure(tmp_path: Path) -> None:
    target, page = tmp_path / "sweep.json", tmp_path / "sweep.html"
    settings = ("--scale", "0,4", "--steps", "1,2", "--sampler", "ddim", "--images", "10")
    sweep = ["evaluate", "sweep", "demo", "--against", "shapes?images=20", "--out", str(target), "--report", str(page)]
    status, _, stderr = run_warm("cli", [*sweep, *settings], os.environ, EVALUATION)
    assert status == 0, stderr
    found = json.loads(target.read_text())
    assert [(each["scale"], each["steps"]) for each in found["cells"]] == [(0, 1), (4, 1), (0, 2), (4, 2)]
    single = tmp_path / "single.json"
    source = "local:demo?images=10&steps=2&scale=4&sampler=ddim&upsample=no"
    status, _, stderr = run(source, "--against", "shapes?images=20", "--json", str(single))
    assert status == 0, stderr
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
    status, printed, stderr = keep(tmp_path, first, other)
    assert (status, printed.strip()) == (0, str(own_weights / "demo" / "demo.sweep.json")), stderr
    (sweep,) = kept_sweeps(own_weights, [pipeline_of(Settings(weights=own_weights), "demo")])
    assert [(each.steps, each.fid.value) for each in sweep.cells] == [(5, 0.12346), (25, 0.12346)]
    assert (sweep.images, sweep.reference, sweep.made_on) == (400, "shapes?images=20", "2026-11-30")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": ["of", "others"]}, "was made with other weights than 'demo' has now"),
        ({"cells": []}, "is not the report of a sweep"),
        ({"cells": [{"metrics": {}}]}, "has no 'fid'"),
        ({"images": "many"}, "is not the report of a sweep"),
        ({"pipeline": "gone"}, "0.json: no stack of"),
    ],
)
def test_report_that_is_no_sweep_of_these_weights_is_not_kept(
    own_weights: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    status, _, line = keep(tmp_path, sweep_report(**changes))
    assert status == 1
    assert message in line
    assert not (own_weights / "demo" / "demo.sweep.json").exists()


def test_file_that_is_no_json_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("text")
    assert "text.json: is not JSON (Expecting value" in refused("keep", str(tmp_path / "text.json"))


def test_sweeps_of_different_images_are_not_joined(own_weights: Path, tmp_path: Path) -> None:
    status, _, line = keep(tmp_path, sweep_report(), sweep_report(images=500))
    assert (status, "the sweeps have different images: 400, 500" in line) == (1, True)


@pytest.mark.parametrize(
    ("option", "given", "message"),
    [
        ("--scale", "0,x", "--scale 0,x: must be numbers, separated by commas"),
        ("--steps", "1.5", "--steps 1.5: must be numbers, separated by commas"),
        ("--scale", "-1", "adm: --scale: must be at least 0"),
        ("--against", "local:demo", "must be an existing set"),
    ],
)
def test_invalid_settings_of_a_sweep_are_reported_in_one_line(
    tmp_path: Path, option: str, given: str, message: str
) -> None:
    options = {"--against": "shapes?images=4", "--out": str(tmp_path / "s.json")} | {option: given}
    assert message in refused("sweep", "demo", *(each for pair in options.items() for each in pair))
