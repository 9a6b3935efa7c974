"""What an inverter refuses before it computes anything."""

from pathlib import Path

import pytest

from jobs.settings import Settings
from tests.models.samples import write_stack
from worker.inverting import open_inverter


def doubt(line: str) -> None:
    """Leave out what the self-check says of weights that were never trained."""


@pytest.mark.parametrize(
    ("name", "class_name", "scale", "why"),
    [
        ("huge", None, 0.0, "has no pipeline 'huge'; there are tiny, tiny-uncond"),
        ("tiny", "purple", 0.0, "unknown class 'purple'; there are: red, green, blue"),
        ("tiny", None, 2.0, "--scale needs --class: without one there is nothing to guide towards"),
    ],
)
def test_wrong_option_is_named_in_one_line(
    name: str, class_name: str | None, scale: float, why: str, tmp_path: Path
) -> None:
    settings, folder = Settings(data=tmp_path, device="cpu"), write_stack(tmp_path / "tiny")
    with pytest.raises(ValueError, match=why):
        open_inverter(settings, folder, name, 4, class_name, scale, doubt)


def test_inverter_is_of_the_first_pipeline_unless_one_is_named(tmp_path: Path) -> None:
    settings, folder = Settings(data=tmp_path, device="cpu"), write_stack(tmp_path / "tiny")
    assert open_inverter(settings, folder, None, 4, "red", 2.0, doubt).pipeline.spec.name == "tiny"
    assert open_inverter(settings, folder, "tiny-uncond", 4, None, 0.0, doubt).pipeline.spec.name == "tiny-uncond"
