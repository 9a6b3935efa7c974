"""The shipped stacks' figures: what cards and README print is what judge.json measured of these weights."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from models.stack import file_hash

ROOT = Path(__file__).parents[2]
DEMO, FASHION = ROOT / "weights" / "demo", ROOT / "weights" / "fashion"
CARD = DEMO / "README.md"
SAMPLER_IN_REPORT = {
    "DDIM (eta 1)": "ddim_eta_1",
    "DDIM (eta 0)": "ddim_eta_0",
    "DPM-Solver++(2M)": "dpmpp_2m",
    "Heun": "heun",
    "DDPM": "ddpm",
}
PIPELINES = {"conditional": "demo", "unconditional": "demo-uncond"}
ROWS = 17


def figures_of(stack: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stack / "judge.json").read_text())
    return found


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return figures_of(DEMO)


def rows(page: Path) -> list[list[str]]:
    """The table's cells, its head and rule left out."""
    lines = page.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| at 25 network evaluations"))
    found: list[list[str]] = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return found
        found.append([each.strip() for each in line.strip("|").split("|")])
    return found


def verdict_of(row: str, measured: dict[str, Any]) -> dict[str, Any]:
    """The figures of a row in judge.json."""
    if row.startswith("64x64"):
        return dict(measured["upsampled"]["upsampled"])
    if row.startswith("the same before"):
        return dict(measured["upsampled"]["base"])
    kind, sampler, *_ = row.split(", ")
    found = dict(measured["pipelines"][PIPELINES[kind]][SAMPLER_IN_REPORT[sampler]])
    if kind == "conditional":
        return found
    scale = re.search(r"scale ([\d.]+)", row)
    assert scale is not None
    best: dict[str, Any] = found["best"]
    if scale[1] == "0":
        return dict(found["scale_0"])
    assert float(scale[1]) == best["guidance_scale"]
    return best


def share(verdict: dict[str, Any]) -> str:
    """The share of images that the judge calls by their class, as the tables print it."""
    low, high = verdict["agreement_95"]
    return f"{100 * verdict['agreement']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def test_every_figure_of_the_demos_card_is_what_was_measured(measured: dict[str, Any]) -> None:
    found = rows(CARD)
    assert len(found) == ROWS
    for what, images, agreement, confidence, fid in found:
        verdict = verdict_of(what, measured)
        assert images == str(verdict["images"]), what
        assert agreement == share(verdict), what
        assert confidence == f"{verdict['confidence']:.3f}", what
        assert fid == ("" if "fid" not in verdict else f"{verdict['fid']:.2f}"), what


def test_every_figure_of_the_fashion_card_is_what_was_measured() -> None:
    pipelines, found = figures_of(FASHION)["pipelines"], rows(FASHION / "card.md")
    assert len(found) == len(pipelines["fashion"]) + 2 * len(pipelines["fashion-uncond"])
    for name, sampler, scale, images, agreement, *others in found:
        of_sampler = pipelines[name][SAMPLER_IN_REPORT[sampler.removesuffix(", 13 steps")]]
        verdict = of_sampler if name == "fashion" else of_sampler["scale_0" if scale == "0" else "best"]
        assert scale == f"{verdict['guidance_scale']:g}"
        assert images == str(verdict["images"])
        assert agreement == share(verdict)
        assert others[:3] == [f"{verdict[metric]:.2f}" for metric in ("fid", "precision", "recall")]
        assert others[3] == f"{verdict['sharpness']:.1f}"


def test_figures_of_real_images_in_the_fashion_card_are_what_was_measured() -> None:
    measured, text = figures_of(FASHION), " ".join((FASHION / "card.md").read_text().split())
    known = measured["judge_on_reference"]
    assert f"The judge calls {share(known)} of {known['images']} of them" in text
    count, another = measured["reference"]["images"], measured["fid_scale"]["another_set"]
    assert f"against {count} real images, from which another {count} have an FID of {another:.2f};" in text
    assert f"sharpness of the real ones is {measured['sharpness_of_reference']:.1f}." in text


@pytest.mark.parametrize("stack", [DEMO, FASHION], ids=lambda path: path.name)
def test_figures_are_of_the_weights_that_are_shipped(stack: Path) -> None:
    hashes = {path.stem: file_hash(path) for path in sorted(stack.glob("*.safetensors"))}
    assert figures_of(stack)["hashes"] == hashes


def test_figure_of_the_readme_is_what_was_measured(measured: dict[str, Any]) -> None:
    verdict = measured["pipelines"]["demo"]["dpmpp_2m"]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert (
        f"the judge assigns the requested class to {100 * verdict['agreement']:.1f} % of {verdict['images']} images"
        in text
    )
