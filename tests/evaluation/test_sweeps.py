"""Sweeps: the Pareto front of the settings, and the recommended settings."""

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from evaluation.html_report import sweep_page
from evaluation.sweeps import front, grid, plots, recommended, value

SVG = "{http://www.w3.org/2000/svg}"


def figure(value: float, half: float = 0.1) -> dict[str, float | None]:
    return {"value": value, "low": value - half, "high": value + half, "bias": None}


def cell(steps: int, scale: float, fid: float, precision: float, recall: float) -> dict[str, Any]:
    metrics = {"fid": figure(fid), "precision": figure(precision, 0.02), "recall": figure(recall, 0.02)}
    settings = {"sampler": "ddim", "steps": steps, "scale": scale, "eta": 0.0}
    return settings | {"evaluations": steps, "seconds_per_image": steps / 100, "metrics": metrics}


CELLS = [cell(5, 0, 3.0, 0.5, 0.9), cell(5, 4, 2.0, 0.7, 0.8), cell(25, 0, 1.5, 0.6, 0.85), cell(50, 4, 1.45, 0.8, 0.7)]


def test_grid_has_every_combination_once() -> None:
    found = grid([0, 2.5], [5, 10], ["ddim", "heun"])
    assert len(set(found)) == 8
    assert {(each.sampler, each.steps, each.evaluations) for each in found} == {
        *(("ddim", 5, 5), ("ddim", 10, 10)),
        *(("heun", 5, 9), ("heun", 10, 19)),
    }


def test_front_contains_the_settings_that_no_other_beats() -> None:
    assert front(CELLS, value("fid"), lambda each: float(each["evaluations"])) == [1, 2, 3]
    assert front(CELLS, value("precision", -1), value("recall", -1)) == [0, 1, 2, 3]
    assert front([CELLS[0], CELLS[0]], value("fid")) == [0, 1]


def test_recommended_settings_are_a_pipelines_fields_by_purpose() -> None:
    found = recommended(CELLS)
    assert found["quality"] == {"guidance_scale": 4, "sampling": {"steps": 50, "sampler": "ddim", "eta": 0.0}}
    assert found["speed"]["sampling"]["steps"] == 25  # 1.5 is within chance of 1.45; 2.0 is not
    assert found["precision"]["sampling"]["steps"] == 50
    assert found["recall"]["guidance_scale"] == 0


def test_metrics_that_few_images_do_not_allow_are_not_recommended_by() -> None:
    few = [each | {"metrics": {"fid": each["metrics"]["fid"]}} for each in CELLS]
    assert set(recommended(few)) == {"quality", "speed"}
    assert len(list(plots(few))) == 2


def test_plots_have_a_point_for_every_cell() -> None:
    for each in plots(CELLS):
        titles = [title.text for title in ElementTree.fromstring(each).iter(f"{SVG}title")]
        assert len(titles) == len(CELLS)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x>'])
def test_names_are_escaped(name: str) -> None:
    report = {
        "pipeline": name,
        "images": 5,
        "seed": 0,
        "numerics": name,
        "cells": [each | {"sampler": name} for each in CELLS],
        "recommended": {name: {}},
        "reference": {"source": name},
    } | dict.fromkeys(("extractor", "machine", "versions", "commit"), name)
    assert name not in sweep_page(report)
