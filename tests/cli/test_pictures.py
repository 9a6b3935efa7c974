"""`adm encode`, `reconstruct` and `interpolate` on a tiny stack."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from cli.main import app
from models.checkpoints.presets import PRESETS, Preset, Sampling
from models.networks.unet import build_unet
from tests.models.samples import BASE, seeded, write_stack
from worker.inverting import read_pixels

DOUBT = "adm: weights look wrong: "


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stack(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Wider than high, larger than the stack's images, and half transparent."""
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").resize((40, 30)).convert("RGBA").save(path)
    return path


def adm(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments], env=env)


@pytest.mark.slow
def test_latent_is_written_as_one_tensor(stack: Path, picture: Path, tmp_path: Path) -> None:
    result = adm("encode", picture, tmp_path / "latent.safetensors", "--stack", stack, "--steps", "4")
    assert result.exit_code == 0, result.output
    assert load_file(tmp_path / "latent.safetensors")["latent"].shape == (3, 8, 8)


@pytest.mark.slow
def test_reconstruction_is_a_picture_and_a_figure(stack: Path, picture: Path, tmp_path: Path) -> None:
    result = adm("reconstruct", picture, tmp_path / "back.png", "--stack", stack, "--steps", "3", "--class", "red")
    assert result.exit_code == 0, result.output
    assert "of 255 on average" in result.output
    with Image.open(tmp_path / "back.png") as back:
        assert back.size == (8, 8)


@pytest.mark.slow
def test_pictures_are_computed_in_the_precision_of_the_settings(stack: Path, picture: Path, tmp_path: Path) -> None:
    latents = {}
    for precision in ("fp32", "bf16"):
        path, chosen = tmp_path / precision, {"ADM_PRECISION": precision}
        assert adm("encode", picture, path, "--stack", stack, "--steps", "2", env=chosen).exit_code == 0
        latents[precision] = load_file(path)["latent"]
    assert not torch.equal(latents["fp32"], latents["bf16"])
    assert torch.allclose(latents["fp32"], latents["bf16"], atol=0.1)


@pytest.mark.slow
def test_frames_are_numbered_so_that_they_sort(stack: Path, picture: Path, tmp_path: Path) -> None:
    result = adm("interpolate", picture, picture, tmp_path / "way", "--frames", "11", "--stack", stack, "--steps", "2")
    assert result.exit_code == 0, result.output
    names = sorted(each.name for each in (tmp_path / "way").iterdir())
    assert (len(names), names[0], names[-1]) == (11, "frame-00.png", "frame-10.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "purple"], "unknown class 'purple'; there are: red, green, blue"),
        (["--pipeline", "huge"], "has no pipeline 'huge'; there are tiny, tiny-uncond"),
        (["--stack", "nowhere"], "no such stack"),
        (["--scale", "2"], "--scale needs --class: without one there is nothing to guide towards"),
    ],
)
def test_wrong_option_is_reported_in_one_line(
    stack: Path, picture: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = adm("reconstruct", picture, tmp_path / "back.png", "--stack", stack, *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert len([line for line in result.output.splitlines() if not line.startswith(DOUBT)]) == 1


@pytest.mark.slow
def test_pipeline_is_found_by_its_name_in_the_weights(stack: Path, picture: Path, tmp_path: Path) -> None:
    weights = {"ADM_WEIGHTS": str(stack.parent), "ADM_PIPELINES": "tiny-uncond,tiny"}
    for name in ([], ["--pipeline", "tiny"]):
        result = adm("encode", picture, tmp_path / "latent.safetensors", "--steps", "2", *name, env=weights)
        assert result.exit_code == 0, result.output
    result = adm("encode", picture, tmp_path / "x", "--pipeline", "adm-64", env=weights)
    assert result.exit_code == 1
    assert "--pipeline: 'adm-64' needs 64x64_diffusion.pt, which is not in" in result.output


def test_official_checkpoint_is_a_pipeline_here_too(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tiny(Preset):
        config = replace(BASE, num_classes=None)

    monkeypatch.setitem(PRESETS, "lsun_cat", Tiny("lsun_cat", "diffusion", {"class_cond": False}, 0, Sampling()))
    official = tmp_path / "official"
    official.mkdir()
    torch.save(seeded(build_unet(Tiny.config), 0).state_dict(), official / "lsun_cat.pt")
    weights = {"ADM_WEIGHTS": str(tmp_path)}
    named = ("--pipeline", "lsun-cat", "--steps", "2")
    result = adm("reconstruct", picture, tmp_path / "back.png", *named, env=weights)
    assert result.exit_code == 0, result.output
    result = adm("reconstruct", picture, tmp_path / "back.png", *named, "--scale", "1", env=weights)
    assert "adm: --scale: 'lsun-cat' has no classifier for guidance" in result.output


@pytest.mark.slow
def test_doubts_about_the_weights_are_a_line_each_on_stderr(stack: Path, picture: Path, tmp_path: Path) -> None:
    result = adm("encode", picture, tmp_path / "latent.safetensors", "--stack", stack, "--steps", "2")
    doubts = [line for line in result.stderr.splitlines() if line.startswith(DOUBT)]
    assert any("tiny, base: at pure noise its eps agrees with the noise by" in line for line in doubts)
    assert DOUBT not in result.stdout


def test_picture_is_read_as_the_service_reads_it(tmp_path: Path) -> None:
    half = Image.new("RGB", (8, 8), "white")
    half.paste("black", (0, 0, 4, 8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    half.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("I;16", (8, 8), 65535).save(tmp_path / "deep.png")
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    white = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    for name in ("clear.png", "deep.png", "cmyk.jpg"):
        assert torch.equal(read_pixels(tmp_path / name, 8), white), name
    white[:, :, :4] = 0
    assert torch.equal(read_pixels(tmp_path / "turned.png", 8), white)


@pytest.mark.slow
def test_a_file_that_is_no_picture_is_reported_in_one_line(stack: Path, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_text("not a picture")
    result = adm("encode", tmp_path / "picture.png", tmp_path / "latent.safetensors", "--stack", stack)
    assert result.exit_code == 1
    assert "adm: picture.png: is not a readable picture" in result.output
