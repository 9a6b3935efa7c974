"""`adm encode`, `reconstruct` and `interpolate` on a tiny stack."""

from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from cli.main import app
from tests.models.samples import write_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stack(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Wider than high, larger than the stack's images, and half transparent."""
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").resize((40, 30)).convert("RGBA").save(path)
    return path


def adm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_latent_is_written_as_one_tensor(stack: Path, picture: Path, tmp_path: Path) -> None:
    result = adm("encode", picture, tmp_path / "latent.safetensors", "--stack", stack, "--steps", "4")
    assert result.exit_code == 0, result.output
    assert load_file(tmp_path / "latent.safetensors")["latent"].shape == (3, 8, 8)


def test_reconstruction_is_a_picture_and_a_figure(stack: Path, picture: Path, tmp_path: Path) -> None:
    result = adm("reconstruct", picture, tmp_path / "back.png", "--stack", stack, "--steps", "3", "--class", "red")
    assert result.exit_code == 0, result.output
    assert "of 255 on average" in result.output
    with Image.open(tmp_path / "back.png") as back:
        assert back.size == (8, 8)


def test_frames_are_numbered_so_that_they_sort(stack: Path, picture: Path, tmp_path: Path) -> None:
    result = adm("interpolate", picture, picture, tmp_path / "way", "--frames", "11", "--stack", stack, "--steps", "2")
    assert result.exit_code == 0, result.output
    names = sorted(each.name for each in (tmp_path / "way").iterdir())
    assert (len(names), names[0], names[-1]) == (11, "frame-00.png", "frame-10.png")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--class", "purple"], "unknown class 'purple'; there are red, green, blue"),
        (["--pipeline", "huge"], "has no pipeline 'huge'; there are tiny, tiny-uncond"),
        (["--stack", "nowhere"], "no such stack"),
    ],
)
def test_what_there_is_not_is_told_in_one_line(
    stack: Path, picture: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    result = adm("reconstruct", picture, tmp_path / "back.png", "--stack", stack, *arguments)
    assert result.exit_code == 1
    assert said in result.output
    assert len(result.output.splitlines()) == 1


def test_a_file_that_is_no_picture_is_told_in_one_line(stack: Path, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_text("not a picture")
    result = adm("encode", tmp_path / "picture.png", tmp_path / "latent.safetensors", "--stack", stack)
    assert result.exit_code == 1
    assert "cannot identify image file" in result.output
