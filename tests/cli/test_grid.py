"""adm grid against the real service, whose worker draws grey pixels."""

import json
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from tests.cli.test_jobs import Adm, address, adm, client, fleet, service_settings, worker
from tests.jobs.samples import png

__all__ = ["address", "adm", "client", "fleet", "service_settings", "worker"]


def test_wrong_value_is_one_line_that_names_axis_and_value(adm: Adm, tmp_path: Path) -> None:
    ran = adm("grid", "--x", "scale=0,1.5", "--y", "class=torus,3,none", "--out", str(tmp_path))
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1)
    assert ran.stderr.startswith("adm: 422: /x/values/1: guidance_scale 1.5: must be 0 without a class")


def test_sheet_and_cells_are_written_and_named_by_row_and_column(
    adm: Adm, client: httpx2.Client, tmp_path: Path
) -> None:
    axes = ("--x", "scale=0,1.5", "--y", "class=torus,3")
    ran = adm("grid", *axes, "--steps", "5", "--seed", "7", "--out", str(tmp_path / "out"))
    assert ran.returncode == 0, ran.stderr
    sheet, *cells = [Path(line) for line in ran.stdout.splitlines()]
    assert sheet.name.endswith("-sheet.png")
    with Image.open(sheet) as picture:
        assert picture.width > 2 * 96
    assert [each.name[-8:] for each in cells] == ["-0-0.png", "-0-1.png", "-1-0.png", "-1-1.png"]
    assert {each.read_bytes() for each in cells} == {png(0)}
    newest = client.get("/v1/jobs").json()["data"][0]["request"]
    assert (newest["class_label"], newest["guidance_scale"], newest["steps"], newest["seed"]) == (3, 1.5, 5, 7)


def test_json_prints_the_grid_alone(adm: Adm, tmp_path: Path) -> None:
    ran = adm("grid", "torus", "--x", "sampler=ddim,heun", "--json", "--out", str(tmp_path))
    grid = json.loads(ran.stdout)
    assert (grid["x"]["values"], grid["y"], grid["completed"], ran.returncode) == (["ddim", "heun"], None, 2, 0)


@pytest.mark.parametrize("axis", ["steps", "steps=", "=1,2"])
def test_malformed_axis_is_refused_in_one_line(adm: Adm, axis: str, tmp_path: Path) -> None:
    ran = adm("grid", "torus", "--x", axis, "--out", str(tmp_path))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"adm: --x {axis}: must be a field and its values, such as scale=0,1,2\n"
