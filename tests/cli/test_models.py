"""`adm models` as a user types it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from models.checkpoints.network_file import save_network
from models.checkpoints.presets import PRESETS
from models.networks.config import DiffusionConfig
from models.networks.unet import build_unet
from models.stack import load_stack
from tests.models.samples import BASE, FACES, seeded, write_faces, write_manifest, write_stack

RUN = CliRunner()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "mine.pt"
    torch.save(seeded(build_unet(BASE), 0).state_dict(), path)
    return path


def adm(*arguments: str | Path) -> tuple[int, str]:
    result = RUN.invoke(app, ["models", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.output


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Not on the screen."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a mirror that has a folder's files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietFiles, directory=str(folder)))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_list_names_checkpoints_and_pipelines() -> None:
    code, output = adm("list")
    assert code == 0
    assert all(name in output for name in ("64_256_upsampler", "lsun_horse_nodropout", "adm-256-uncond", "adm-128-512"))


def test_show_prints_flags_and_figures() -> None:
    code, output = adm("show", "64x64_diffusion")
    assert code == 0
    assert all(part in output for part in ("--noise_schedule cosine", "fid 2.07", "adm-64-256", "use_new_attention"))


def test_show_of_a_pipeline_is_of_all_its_checkpoints() -> None:
    code, output = adm("show", "adm-64-256")
    assert code == 0
    titles = [line.strip() for line in output.splitlines() if line.rstrip().endswith(")")]
    assert titles == ["64x64_diffusion (diffusion)", "64x64_classifier (classifier)", "64_256_upsampler (upsampler)"]


@pytest.mark.parametrize("name", PRESETS)
def test_show_cuts_nothing_and_leaves_out_what_says_nothing(name: str) -> None:
    result = RUN.invoke(app, ["models", "show", name], env={"COLUMNS": "60"})
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines() if "│" in line]
    names = [row[0] for row in rows if row[0]]
    assert PRESETS[name].url in "".join(value for _, value in rows)
    assert "…" not in result.output
    assert not {"None", "-1"} & {value for _, value in rows}
    assert len({"num_heads", "num_head_channels"} & set(names)) == 1


def test_fetch_of_a_pipeline_fetches_its_files_one_after_another(tmp_path: Path) -> None:
    mirror, folder = tmp_path / "mirror", tmp_path / "official"
    mirror.mkdir()
    for name in ("128x128_diffusion", "128x128_classifier"):
        (mirror / f"{name}.pt").write_bytes(name.encode())
    with served(mirror) as address:
        code, output = adm("fetch", "adm-128", "--from", address, "--to", folder)
    assert code == 0, output
    assert {each.name: each.read_bytes() for each in folder.glob("*.pt")} == {
        "128x128_diffusion.pt": b"128x128_diffusion",
        "128x128_classifier.pt": b"128x128_classifier",
    }


def test_address_of_one_file_is_not_that_of_a_pipeline() -> None:
    code, output = adm("fetch", "adm-128", "--from", "http://127.0.0.1/128x128_diffusion.pt")
    assert (code, output) == (1, "adm: --from: adm-128 is 2 files; give the address of their folder\n")


@pytest.mark.parametrize("command", ["show", "fetch"])
def test_unknown_preset_is_one_line(command: str) -> None:
    code, output = adm(command, "63x63")
    assert (code, output.count("\n")) == (1, 1)
    assert "no preset and no pipeline is named '63x63'; there are 64x64_classifier" in output


def test_inspect_prints_what_is_in_the_file_and_what_is_not(checkpoint: Path) -> None:
    code, output = adm("inspect", checkpoint)
    assert code == 0
    assert "no official checkpoint" in output
    assert "use_new_attention_order" in output.partition("Not shown by its keys")[2]


def test_verify_names_the_differences_and_fails(checkpoint: Path) -> None:
    code, output = adm("verify", checkpoint, "--preset", "64x64_diffusion")
    assert code == 1
    assert "mine.pt: lacks input_blocks.4.0.in_layers.0.weight [192]" in output
    assert output.rstrip().endswith("differences from 64x64_diffusion")


def test_convert_of_a_foreign_checkpoint_writes_its_tensors(checkpoint: Path) -> None:
    target = checkpoint.with_suffix(".safetensors")
    assert adm("convert", checkpoint, target, "--dtype", "bf16")[0] == 0
    header = target.read_bytes()
    size = int.from_bytes(header[:8], "little")
    entries = json.loads(header[8 : 8 + size])
    assert {entry["dtype"] for entry in entries.values()} == {"BF16"}
    assert (8 + size) % 64 == 0


FLAGS = ("--num-head-channels", "16", "--no-use-new-attention-order", "--image-size", "8")
TRAINING = ("--noise-schedule", "cosine", "--diffusion-steps", "4000", "--rescale-timesteps", "--predict-xstart")


def flags_in(output: str) -> dict[str, list[str]]:
    """Each flag's value and its origin."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    return {row[0]: row[1:3] for row in rows if len(row) == 4}


def test_inspect_shows_the_flags_given_and_those_assumed(checkpoint: Path) -> None:
    code, output = adm("inspect", checkpoint, *FLAGS)
    assert code == 0
    flags = flags_in(output)
    assert flags["num_heads / num_head_channels"] == ["16 channels a head", "given here"]
    assert flags["image_size"] == ["8", "given here"]
    assert flags["noise_schedule"] == ["linear", "assumed"]


def test_inspect_shows_what_convert_wrote_into_the_file(checkpoint: Path) -> None:
    target = checkpoint.with_suffix(".safetensors")
    settled = ("--noise-schedule", "cosine", "--diffusion-steps", "1000", "--no-predict-xstart")
    code, output = adm("convert", checkpoint, target, *FLAGS, *settled)
    assert code == 0, output
    code, output = adm("inspect", target, "--num-heads", "1", "--diffusion-steps", "4000")
    assert code == 0, output
    flags = flags_in(output)
    assert flags["noise_schedule"] == ["cosine", "in the file"]
    assert flags["image_size"] == ["8", "in the file"]
    assert flags["num_heads / num_head_channels"] == ["1 head at every width", "given here"]
    assert flags["diffusion_steps"] == ["4000", "given here"]


def test_inspect_shows_what_the_stack_beside_a_file_names(tmp_path: Path) -> None:
    code, output = adm("inspect", write_stack(tmp_path) / "base.safetensors")
    assert code == 0, output
    flags = flags_in(output)
    assert flags["num_heads / num_head_channels"] == ["16 channels a head", "in the file"]
    assert flags["noise_schedule"] == ["cosine", "named by stack.json"]


def test_checkpoint_of_another_dataset_is_a_network_of_a_stack_once_its_flags_are_given(tmp_path: Path) -> None:
    source, folder = write_faces(tmp_path), tmp_path / "faces"
    folder.mkdir()
    code, output = adm("convert", source, folder / "faces.safetensors", *FLAGS, *TRAINING)
    assert code == 0, output
    pipeline = {"conditional": False, "class_required": False, "guidance_scale": 0, "upsampling": None}
    pipelines = {"faces": pipeline | {"sampling": {"steps": 5, "sampler": "ddim"}}}
    write_manifest(folder, {"classes": [], "base": {"file": "faces.safetensors"}, "pipelines": pipelines})
    stack = load_stack(folder)
    assert stack.base.network.config == FACES
    assert stack.base.process == DiffusionConfig("cosine", 4000, rescale_timesteps=True, predict_xstart=True)


def test_convert_asks_for_every_flag_that_is_still_open(checkpoint: Path) -> None:
    target = checkpoint.with_suffix(".safetensors")
    code, output = adm("convert", checkpoint, target, *FLAGS, "--diffusion-steps", "250")
    assert code == 1
    assert [line.split()[1] for line in output.splitlines()] == [
        "noise_schedule",
        "rescale_timesteps",
        "predict_xstart",
    ]
    assert not target.exists()


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_wrong_flags_are_one_line_each(checkpoint: Path, command: str) -> None:
    target = [checkpoint.with_suffix(".safetensors")] if command == "convert" else []
    code, output = adm(command, checkpoint, *target, "--num-head-channels", "7", "--image-size", "9")
    assert code == 1
    assert output.splitlines() == [
        "adm: num_head_channels 7 does not divide the 32 channels of attention layers",
        "adm: image_size 9 cannot be halved 1 time, which the 2 levels need",
    ]


def test_preset_and_flags_contradict(checkpoint: Path) -> None:
    target = checkpoint.with_suffix(".safetensors")
    code, output = adm("convert", checkpoint, target, "--preset", "lsun_cat", "--image-size", "8")
    assert (code, output) == (1, "adm: --preset settles image_size; give one or the other\n")


def test_bad_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "64x64_diffusion.pt"
    path.write_bytes(b"not a checkpoint")
    for command in ("verify", "inspect"):
        code, output = adm(command, path)
        assert (code, output.count("\n")) == (1, 1)
        assert "64x64_diffusion.pt: is no weights file: it begins with b'not a ch'" in output


def test_judge_and_other_networks_are_no_adm_networks(tmp_path: Path) -> None:
    from models.networks.judge import Judge, JudgeConfig

    config = JudgeConfig(image_size=8, num_classes=3, widths=(32,))
    path = tmp_path / "judge.safetensors"
    save_network(path, Judge(config).state_dict(), config, dtype=torch.float32)
    code, output = adm("inspect", path)
    assert (code, output) == (1, "adm: judge.safetensors: no ADM network: lacks input_blocks.0.0.weight\n")
