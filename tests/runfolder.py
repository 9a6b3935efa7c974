"""Folders of training runs, without a training."""

from pathlib import Path

from PIL import Image

from runfolder.folder import CONFIG, INFO, PREVIEWS, write_json
from runfolder.stats import append_line


def write_run(folder: Path, steps: int = 100, *, started_at: float = 1.0, grids: bool = True) -> Path:
    """A run with a line of figures every ten steps and, if asked, two sample grids."""
    (folder / PREVIEWS).mkdir(parents=True)
    write_json(folder / CONFIG, {"kind": "diffusion", "optimiser": {"steps": steps}})
    start = {"time": started_at, "device": "cpu", "precision": "fp32", "processes": 1, "versions": {"torch": "2"}}
    data = {"images": 8, "held_out": 0, "class_names": ["cat"], "classes": {"cat": 8}, "fingerprint": "0"}
    write_json(folder / INFO, {"format": 1, "kind": "diffusion", "data": data, "starts": [start]})
    for step in range(10, steps + 1, 10):
        append_line(folder, {"step": step, "loss": 1 / step, "loss_q0": 2 / step, "learning_rate": 1e-3})
    for step, colour in ((50, "red"), (steps, "blue")) if grids else ():
        Image.new("RGB", (20, 10), colour).save(folder / PREVIEWS / f"{step:08d}.png")
    return folder
