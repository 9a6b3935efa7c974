"""Pictures that show how far a run is."""

from pathlib import Path

import torch
from PIL import Image

from diffusion.process import DiffusionProcess
from diffusion.schedule import Schedule
from training.preview import preview_images, write_grid


def test_preview_is_the_same_pictures_each_time() -> None:
    process = DiffusionProcess(Schedule.named("cosine", 1000))

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, torch.zeros_like(x)], dim=1)

    first, again = (preview_images(process, network, 3, (3, 8, 8)) for _ in range(2))
    assert torch.equal(first, again)
    assert bool(first.isfinite().all())


def test_grid_has_the_images_row_by_row(tmp_path: Path) -> None:
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(-1, 3, 2, 2)
    write_grid(images, tmp_path / "grid.png", columns=3)
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == (6, 4)
        assert [sheet.getpixel(place) for place in ((0, 0), (2, 0), (4, 0), (0, 2), (2, 2), (4, 2))] == [
            (value,) * 3 for value in (0, 63, 127, 191, 255, 0)
        ]
