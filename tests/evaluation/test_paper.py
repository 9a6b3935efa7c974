"""The paper at a small scale: the charts and findings of docs/paper.md follow from the stored figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.paper.__main__ import CHARTS, ROWS
from bench.paper.core import RESULTS, Cell, Variance, with_variance
from bench.paper.row import Row, above
from bench.paper.subject import FASHION, SUBJECTS, Subject
from diffusion.process import VarianceType
from engine.diffusion_process import process_of
from models.stack import load_stack


@pytest.mark.parametrize(
    ("subject", "row"),
    [pytest.param(SUBJECTS[name], row, id=f"{name}-{row.part}") for name, rows in ROWS.items() for row in rows],
)
def test_findings_and_charts_are_those_of_the_kept_figures(subject: Subject, row: Row) -> None:
    content: dict[str, Any] = json.loads((RESULTS / subject.subfolder / f"{row.part}.json").read_text())
    assert content["row"] == row.number
    assert content["checks"] == row.checks(content["points"])
    for name, svg in row.charts(content["points"]).items():
        assert (CHARTS / subject.subfolder / f"{row.part}-{name.replace('_', '-')}.svg").read_text() == svg


def test_page_shows_every_row_and_all_fourteen_were_measured() -> None:
    page = (CHARTS.parent / "paper.md").read_text()
    assert sorted(row.number for row in ROWS["demo"]) == list(range(1, 15))
    for name, rows in ROWS.items():
        for row in rows:
            assert f"]({Path('paper', SUBJECTS[name].subfolder, row.part)}-" in page
            assert f"\n## {row.number}. " in page


def test_cells_that_differ_are_kept_apart() -> None:
    cells = [Cell(), Cell(4.0), Cell(4.0, steps=10), Cell(4.0, eta=1.0), Cell(eps_scale=1.0), Cell(upsample=True)]
    assert len({cell.name for cell in cells}) == len(cells)


def test_network_without_a_learned_variance_gets_both_bounds() -> None:
    base = load_stack(FASHION.folder).base
    bounds: dict[Variance, VarianceType] = {"small": VarianceType.FIXED_SMALL, "large": VarianceType.FIXED_LARGE}
    for variance, expected in bounds.items():
        assert process_of(with_variance(base, variance)).variance_type is expected


def test_a_difference_counts_only_beyond_both_intervals() -> None:
    def point(value: float, half: float) -> dict[str, Any]:
        return {"metrics": {"fid": {"value": value, "low": value - half, "high": value + half}}}

    assert above(point(2, 0.5), point(1, 0.5), "fid")
    assert not above(point(1.7, 0.5), point(1, 0.5), "fid")
    assert not above(point(1, 0.5), point(2, 0.5), "fid")
