"""The shipped stack's figures: what model card and README print is what judge.json measured of these weights."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from models.stack import file_hash

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "weights" / "demo"
CARD = DEMO / "README.md"
WAYS = {
    "DDIM (eta 1)": "ddim_eta_1",
    "DDIM (eta 0)": "ddim_eta_0",
    "DPM-Solver++(2M)": "dpmpp_2m",
    "Heun": "heun",
    "DDPM": "ddpm",
}
PIPELINES = {"conditional": "demo", "unconditional": "demo-uncond"}
ROWS = 13


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEMO / "judge.json").read_text())
    return found


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
    kind, way, *_ = row.split(", ")
    found = dict(measured["pipelines"][PIPELINES[kind]][WAYS[way]])
    if kind == "conditional":
        return found
    scale = re.search(r"scale ([\d.]+)", row)
    assert scale is not None
    best: dict[str, Any] = found["best"]
    if scale[1] == "0":
        return dict(found["scale_0"])
    assert float(scale[1]) == best["guidance_scale"]
    return best


def test_every_figure_of_the_table_is_what_was_measured(measured: dict[str, Any]) -> None:
    found = rows(CARD)
    assert len(found) == ROWS
    for what, images, agreement, confidence, fid in found:
        verdict = verdict_of(what, measured)
        low, high = verdict["agreement_95"]
        assert images == str(verdict["images"]), what
        assert agreement == f"{100 * verdict['agreement']:.1f} % ({100 * low:.1f} to {100 * high:.1f})", what
        assert confidence == f"{verdict['confidence']:.3f}", what
        assert fid == ("" if "fid" not in verdict else f"{verdict['fid']:.2f}"), what


def test_figures_are_of_the_weights_that_are_shipped(measured: dict[str, Any]) -> None:
    assert measured["hashes"] == {path.stem: file_hash(path) for path in sorted(DEMO.glob("*.safetensors"))}


def test_figure_of_the_readme_is_what_was_measured(measured: dict[str, Any]) -> None:
    verdict = measured["pipelines"]["demo"]["dpmpp_2m"]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"the judge recognises {100 * verdict['agreement']:.1f} % of {verdict['images']} images" in text
