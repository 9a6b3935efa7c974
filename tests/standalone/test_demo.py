import hashlib
import io
from typing import Any

import pytest
from PIL import Image

from models.checkpoints.presets import SHAPE_NAMES
from standalone.contact_sheet import MARGIN_PX, TILE_PX, Tile, contact_sheet
from standalone.demo import Outcome, batch_occupancy, report
from standalone.demo_requests import demo_requests

MODEL = {
    "id": "demo",
    "samplers": ["ddpm", "ddim", "dpmpp_2m"],
    "defaults": {"guidance_scale": 4.0, "sampler": "dpmpp_2m", "eta": 0.0},
    "classes": [{"index": i, "name": name} for i, name in enumerate(SHAPE_NAMES)],
}

METRICS = """\
# TYPE adm_step_rows counter
adm_step_rows_total{stage="base",worker="cpu-0"} 250
adm_step_rows_total{stage="upsample",worker="cpu-0"} 50
# TYPE adm_step_padding_rows counter
adm_step_padding_rows_total{stage="base",worker="cpu-0"} 70
adm_step_padding_rows_total{stage="upsample",worker="cpu-0"} 30
"""


def ended(created_at: float, ended_at: float, status: str = "completed") -> dict[str, Any]:
    return {
        "id": f"job-{created_at}",
        "request": {"class_label": 0},
        "status": status,
        "created_at": created_at,
        "ended_at": ended_at,
        "error": None,
        "numerics": "cpu",
    }


def test_demo_asks_once_for_each_class_and_mixes_scales_steps_and_samplers() -> None:
    requests = demo_requests(MODEL)
    assert [each["class_label"] for each in requests] == list(SHAPE_NAMES)
    assert len({(each["guidance_scale"], each["steps"], each["sampler"]) for each in requests}) == len(requests)
    assert {(each["sampler"], each["eta"]) for each in requests} == {
        (each, 0.0) for each in ("ddpm", "ddim", "dpmpp_2m")
    }
    assert len({each["seed"] for each in requests}) == len(requests)


def test_report_times_each_job_and_the_run_as_a_whole() -> None:
    png = b"any bytes"
    summary = report([Outcome(ended(100.0, 104.0), png), Outcome(ended(101.0, 105.0), png)], METRICS)
    assert [job["seconds"] for job in summary["jobs"]] == [4.0, 4.0]
    assert [job["sha256"] for job in summary["jobs"]] == [hashlib.sha256(png).hexdigest()] * 2
    assert summary["images_per_second"] == pytest.approx(2 / 5)
    assert summary["batch_occupancy"] == pytest.approx(300 / 400)
    assert summary["commit"] is None or len(summary["commit"]) == 40


def test_image_that_did_not_arrive_counts_for_nothing() -> None:
    summary = report([Outcome(ended(100.0, 104.0, "failed"), None)], METRICS)
    assert summary["jobs"][0]["sha256"] is None
    assert summary["images_per_second"] == 0


def test_occupancy_is_unknown_before_the_first_step() -> None:
    assert batch_occupancy("# TYPE adm_images counter\nadm_images_total 0\n") is None


def test_contact_sheet_shows_every_image_enlarged_without_smoothing() -> None:
    colours = [(10 * i, 255 - 10 * i, 7) for i in range(7)]
    tiles = [Tile(Image.new("RGB", (64, 64), colour), f"shape {i}", "ddim") for i, colour in enumerate(colours)]
    data = io.BytesIO()
    contact_sheet(tiles).save(data, "PNG")
    sheet = Image.open(data)
    assert sheet.width == 5 * (TILE_PX + MARGIN_PX) + MARGIN_PX
    seen = {colour for _, colour in sheet.getcolors(1 << 20) or []}
    assert set(colours) <= seen


def test_contact_sheet_shows_the_middle_square_that_training_uses() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("lime", (100, 0, 200, 100))
    seen = {colour for _, colour in contact_sheet([Tile(wide, "", "")]).getcolors(1 << 20) or []}
    assert (0, 255, 0) in seen
    assert (255, 0, 0) not in seen
