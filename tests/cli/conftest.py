"""Data of `adm evaluate`: where it keeps features, and two sets of renders."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.shapes import render_set
from tests.cli.evaluations import IMAGES, run


@pytest.fixture
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
