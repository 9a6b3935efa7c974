"""`adm evaluate` as a user runs it: figures from pictures on disk, and one line for whatever cannot be measured."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from datasets.shapes import render_set
from engine.trajectory import StagePlan
from evaluation import stack_report
from tests.cli.evaluations import IMAGES, METRICS, refused, report, run
from tests.evaluation.test_stack_report import add_judge, write_run
from tests.models.samples import MANIFEST, write_manifest, write_stack
from tests.training.samples import write_npz

pytestmark = pytest.mark.usefixtures("data")


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
    status, _, stderr = run(
        str(tmp_path / "large.npz"), "--against", "shapes?images=4&seed=7", "--json", str(target), "--strict"
    )
    assert status == 0, stderr
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
    missing = refused("compare", str(ours), str(tmp_path / "missing.json"))
    assert missing == f"adm: {tmp_path / 'missing.json'}: No such file or directory"
    assert "is no report of adm evaluate --json" in refused("compare", str(ours), str(sets / "a.npz"))


def test_files_that_cannot_be_read_are_counted_or_refused(sets: Path, tmp_path: Path) -> None:
    for each in (sets / "a").iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    _, printed, _ = run(str(tmp_path), "--against", str(sets / "b.npz"))
    assert "note: samples: 1 file could not be read, first " in printed
    line = refused(str(tmp_path), "--against", str(sets / "b.npz"), "--strict")
    assert "broken.png" in line


def test_file_name_that_is_not_utf8_is_in_the_figures_the_json_and_the_page(sets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<b>ü'\""
    folder.mkdir()
    for each in (sets / "a").iterdir():
        (folder / each.name).write_bytes(each.read_bytes())
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"no picture")
    target, page = tmp_path / "report.json", tmp_path / "report.html"
    outputs = ("--json", str(target), "--report", str(page))
    status, printed, stderr = run(str(folder), "--against", str(sets / "b.npz"), *outputs)
    assert status == 0, stderr
    assert "\\udcff.png (is not a readable picture)" in printed
    (skipped,) = json.loads(target.read_text())["samples"]["skipped"]
    assert os.fsencode(skipped["file"]) == os.fsencode(folder) + b"/\xff.png"
    assert "<b>" not in page.read_text()


def test_refused_set_leaves_nothing_behind(sets: Path, data: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "small.npz", np.zeros((9, 16, 16, 3), np.uint8))
    refused(str(tmp_path / "small.npz"), "--against", str(sets / "b.npz"))
    assert list((data / "evaluate").iterdir()) == []


def test_no_output_replaces_the_set_that_is_measured(sets: Path) -> None:
    samples, reference = sets / "a.npz", sets / "b.npz"
    before = samples.read_bytes(), reference.read_bytes()
    for option in ("--json", "--report"):
        for target in (samples, reference):
            line = refused(str(samples), "--against", str(reference), option, str(target))
            assert f"{option} {target}: would replace the set that is measured" in line
    assert "would replace the set" in refused("stats", str(samples), "--out", str(samples))
    assert (samples.read_bytes(), reference.read_bytes()) == before


def test_figures_are_printed_although_their_file_cannot_be_written(sets: Path, data: Path) -> None:
    status, printed, stderr = run(str(sets / "a"), "--against", str(sets / "b.npz"), "--json", "/dev/full")
    assert (status, stderr.splitlines()[-1]) == (
        1,
        "adm: --json /dev/full: cannot be written (No space left on device)",
    )
    assert printed.splitlines()[1].startswith("FID ")


@pytest.mark.parametrize(
    "figure",
    [
        {"value": "x", "low": 0, "high": 1},
        {"value": None, "low": None, "high": None},
        {"value": float("nan"), "low": None, "high": None},
        {"value": 0, "low": None, "high": 1},
        {"value": 0, "low": [], "high": 1},
        {"value": 10**400, "low": None, "high": None},
    ],
)
def test_report_with_a_figure_that_is_no_number_is_refused_by_name(
    sets: Path, tmp_path: Path, figure: dict[str, object]
) -> None:
    ours = tmp_path / "ours.json"
    assert run(str(sets / "a.npz"), "--against", str(sets / "b.npz"), "--json", str(ours))[0] == 0
    report = json.loads(ours.read_text())
    (tmp_path / "theirs.json").write_text(json.dumps(report | {"metrics": {"fid": figure}}))
    assert "theirs.json: is no report of adm evaluate" in refused("compare", str(ours), str(tmp_path / "theirs.json"))
    (tmp_path / "theirs.json").write_text(json.dumps(report | {"metrics": {}}))
    assert "have no metric in common" in refused("compare", str(ours), str(tmp_path / "theirs.json"))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((1, 32, 32, 3), np.uint8), "set.npz: has 1 image; metrics need 2 or more"),
        (np.zeros((0, 32, 32, 3), np.uint8), "set.npz: has 0 images; metrics need 2 or more"),
        (np.zeros((9, 16, 16, 3), np.uint8), "takes squares of 32x32 pixels or more"),
        (np.zeros((9, 40, 32, 3), np.uint8), "images are 32x40"),
        (np.zeros((9, 64, 64, 3), np.uint8), "the samples are 64x64 and the reference is 32x32"),
        (np.zeros((9, 32, 32, 3)), "arr_0 is float64"),
    ],
)
def test_pictures_that_cannot_be_measured_are_reported_in_one_line(
    sets: Path, tmp_path: Path, pixels: np.ndarray, message: str
) -> None:
    np.savez(tmp_path / "set.npz", pixels)
    assert message in refused(str(tmp_path / "set.npz"), "--against", str(sets / "b.npz"))


@pytest.mark.parametrize(
    ("samples", "more", "message"),
    [
        ("none", (), "none: there is no such file or folder"),
        ("", (), "the name of the samples is empty; give a folder, a file, or shapes"),
        ("shapes?image=9", (), "there is no setting 'image'; there are images, seed, size"),
        ("shapes?images=1", (), "images=1: must be a whole number, 2 or more"),
        ("shapes?images", (), "settings are KEY=VALUE"),
        ("shapes?seed=", (), "seed has no value"),
        ("shapes?size=2000000", (), "2000 images of 2000000x2000000 do not fit in memory"),
        ("shapes?seed=1&seed=2", (), "a setting is given twice"),
        ("local:demo?steps=x", (), "demo: steps=x: must be a whole number"),
        ("local:demo?scale=x", (), "demo: scale=x: must be a number"),
        ("local:demo?scale=-1", (), "local:demo?scale=-1: scale: must be at least 0"),
        ("local:none", (), "local:none: pipeline: no stack of"),
        ("service:demo", ("--url", "http://[x"), "adm: --url: 'http://[x' is not a URL"),
        ("shapes", ("--url", "http://127.0.0.1"), "--url http://127.0.0.1: is only for samples of a service"),
        ("local:demo?upsample=maybe", (), "upsample=maybe: must be yes or no"),
        ("shapes", ("--extractor", "inception"), "there are judge, judge:FILE, inception:FILE, dinov2:FILE"),
        ("shapes", ("--extractor", "inception:weights/demo/judge.safetensors"), "lacks 472 key"),
        ("shapes", ("--extractor", "dinov2:weights/demo/judge.safetensors"), "is no DINOv2: its pos_embed has 0"),
        ("shapes", ("--extractor", "dinov2:none.pth"), "none.pth"),
        ("shapes", ("--extractor", "judge:weights/demo/base.safetensors"), "contains a UNet, expected a Judge"),
    ],
)
def test_invalid_sources_are_reported_in_one_line(samples: str, more: tuple[str, ...], message: str) -> None:
    assert message in refused(samples, "--against", "shapes?images=2", *more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", "--against", "shapes"), "weights/none"),
        (("demo", "--against", "none"), "is none a training run?"),
        (
            ("demo", "--against", "shapes", "--pipeline", "x"),
            "--pipeline: demo has no 'x'; there are demo, demo-uncond",
        ),
        (("demo", "--against", "shapes?images=9"), "there is no setting 'images'; there are seed"),
        (
            ("fashion", "--against", "shapes"),
            "shapes: the classes of fashion are no shapes (T-shirt, trouser, pullover",
        ),
        (
            ("demo", "--against", "shapes", "--json", "none/report.json"),
            "--json none/report.json: there is no folder none; make it first",
        ),
    ],
)
def test_stack_that_cannot_be_measured_is_reported_in_one_line(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused("stack", *arguments)


@pytest.mark.slow
def test_stack_is_measured_beside_the_held_out_images_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # no option sets the rows and the samplers; the test is of what is printed, which does not depend on their number
    monkeypatch.setattr(stack_report, "MAX_ROWS", 4)
    monkeypatch.setattr(stack_report, "SAMPLER_PLANS", {"ddim_eta_0": StagePlan("base", "ddim", 2)})
    monkeypatch.setenv("ADM_WEIGHTS", str(tmp_path))
    add_judge(write_stack(tmp_path / "tiny"), 3)
    write_manifest(tmp_path / "tiny", MANIFEST | {"classes": ["0", "1", "2"]})  # an .npz has no names
    held_out = write_run(tmp_path / "run", write_npz(tmp_path / "images.npz", 150), 128)
    target = tmp_path / "judge.json"
    arguments = ("--against", str(held_out), "--images", "25", "--json", str(target))
    status, printed, stderr = run("stack", "tiny", *arguments)
    assert status == 0, stderr
    assert "tiny, ddim_eta_0, scale 1" in printed
    measured = json.loads(target.read_text())
    assert measured["reference"] == {"source": str(held_out), "images": 25}
    assert set(measured["pipelines"]) == {"tiny", "tiny-uncond"}
    assert run("stack", "tiny", *arguments, "--pipeline", "tiny")[0] == 0
    assert set(json.loads(target.read_text())["pipelines"]) == {"tiny"}


def test_a_file_that_cannot_be_written_is_reported_before_anything_is_measured(tmp_path: Path) -> None:
    target = str(tmp_path / "none" / "x.npz")
    assert f"--out {target}: " in refused("stats", "nothing", "--out", target)
    line = refused("nothing", "--against", "nothing", "--json", str(tmp_path))
    assert line == f"adm: --json {tmp_path}: is a folder; give a file"


def test_a_reference_must_be_there_already() -> None:
    assert "only SAMPLES may be local:... or service:..." in refused("shapes", "--against", "local:demo")


def test_moments_alone_are_no_samples_but_a_reference(sets: Path, tmp_path: Path) -> None:
    with np.load(sets / "b-stats.npz") as arrays:
        np.savez(tmp_path / "official.npz", **{name: arrays[name] for name in ("mu", "sigma", "mu_s", "sigma_s")})
    official = str(tmp_path / "official.npz")
    status, printed, _ = run(str(sets / "a.npz"), "--against", official)
    assert (status, "FID" in printed, "precision " in printed) == (0, True, False)
    line = refused(official, "--against", str(sets / "a.npz"))
    assert "so it can only be --against; give pictures as SAMPLES" in line


@pytest.mark.slow
def test_a_pipeline_is_sampled_in_this_process(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    samples = "local:demo?images=10&steps=2&upsample=no&seed=3"
    status, printed, stderr = run(samples, "--against", "shapes?images=20", "--json", str(target))
    assert status == 0, stderr
    found = json.loads(target.read_text())
    assert found["samples"]["source"] == samples
    assert found["samples"]["made"]["parameters"]["steps"] == 2
    assert found["samples"]["size"] == found["reference"]["size"] == "32x32"
    assert "precision" in printed


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
