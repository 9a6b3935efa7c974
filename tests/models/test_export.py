"""The official scripts read exported networks with the printed flags."""

import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from models.checkpoints.export import official_flags
from models.checkpoints.flags import classifier_config, diffusion_config, upsampler_config
from models.checkpoints.network_file import load_network, read_config, read_process, save_network
from models.checkpoints.presets import PRESETS
from models.checkpoints.tensor_file import read_tensors
from models.checkpoints.verify import differences
from models.networks.config import ClassifierConfig, DiffusionConfig
from models.networks.unet import UNet

MAKERS = {"diffusion": diffusion_config, "upsampler": upsampler_config, "classifier": classifier_config}


@pytest.mark.parametrize("name", PRESETS)
def test_flags_make_the_network_that_they_describe(name: str) -> None:
    preset = PRESETS[name]
    flags, without_flag = official_flags(preset.config, preset.process)
    assert without_flag == {}
    assert MAKERS[preset.role](flags) == preset.config


def adm(*arguments: str | Path) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, ["models", *map(str, arguments)])
    return result.exit_code, result.output.splitlines()


def test_stack_is_exported_with_its_flags_and_what_no_flag_says(stack_folder: Path, tmp_path: Path) -> None:
    code, lines = adm("export", stack_folder, tmp_path / "out")
    assert code == 0, lines
    script = "write it into guided_diffusion/script_util.py"
    base = tmp_path / "out" / "base.pt"
    assert lines[0].startswith(f"{base}: --")
    assert "--image_size 8" in lines[0]
    assert "--noise_schedule cosine" in lines[0]
    assert "--channel_mult 1,1" in lines[0]
    assert lines[1] == f"{base}: no official flag sets num_classes = 4: {script}"
    state = torch.load(base, weights_only=True)
    assert {value.dtype for value in state.values()} == {torch.float32}
    config = read_config(stack_folder / "base.safetensors")
    assert differences(state, config) == []
    assert torch.equal(
        load_network(base, UNet, config=config).state_dict()["out.2.weight"],
        load_network(stack_folder / "base.safetensors", UNet).state_dict()["out.2.weight"],
    )
    classifier = read_config(stack_folder / "classifier.safetensors")
    assert isinstance(classifier, ClassifierConfig)
    assert official_flags(classifier)[1] == {
        "out_channels": 3,
        "num_head_channels": 16,
        "channel_mult": (1, 1),
    }


def test_what_is_there_is_not_overwritten_and_what_is_unknown_is_one_line(stack_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "base.pt").write_text("mine")
    assert adm("export", stack_folder, tmp_path / "out") == (1, [f"adm: {tmp_path}/out/base.pt: is there already"])
    shutil.rmtree(tmp_path / "out")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "mine.pt")
    code, lines = adm("export", tmp_path / "mine.pt", tmp_path / "out")
    assert (code, len(lines)) == (1, 1)
    assert "carries no network configuration" in lines[0]
    assert not (tmp_path / "out").exists()


def test_network_of_grey_images_is_not_exported_and_stays_one_when_it_is_converted(
    stack_folder: Path, tmp_path: Path
) -> None:
    """The official scripts would take its raw output, whose channels differ by what was never trained."""
    grey, again = tmp_path / "grey.safetensors", tmp_path / "again.safetensors"
    state, config = read_tensors(stack_folder / "base.safetensors"), read_config(stack_folder / "base.safetensors")
    save_network(grey, state, config, DiffusionConfig("cosine", 50, grey=True), dtype=torch.float32)
    code, lines = adm("export", grey, tmp_path / "out")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].endswith("generates grey images (process.grey), which the official scripts cannot do")
    flags = ("--num-head-channels", "16", "--no-use-new-attention-order", "--noise-schedule", "cosine")
    training = (
        "--image-size",
        "8",
        "--diffusion-steps",
        "50",
        "--no-rescale-timesteps",
        "--no-predict-xstart",
        "--num-res-blocks",
        "1",
    )
    code, lines = adm("convert", grey, again, *flags, *training)
    assert code == 0, lines
    assert read_process(again) == DiffusionConfig("cosine", 50, grey=True)
