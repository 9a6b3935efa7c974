"""From a folder of images to a stack that loads, in the commands that the README names."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from models.stack import load_stack
from runfolder.folder import STATE
from tests.training.samples import config, write_npz
from training.config import read_config
from training.packing import add_stack
from training.presets import PRESET_NAMES, read_fields
from training.session import Request, train
from training.state import read_state


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(8):
        name, colour = (("cat", "red"), ("dog", "blue"))[index % 2]
        (folder / name).mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), colour).save(folder / name / f"{index}.png")
    return folder


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


@pytest.mark.slow
def test_folder_becomes_a_stack_with_its_classes(photos: Path, tmp_path: Path) -> None:
    status, output = run(
        *("train-stack", "--images", str(photos), "--name", "pets", "--upsampler", "--steps", "3", "--batch-size", "4"),
        *("--image-size", "16", "--out", str(tmp_path / "runs"), "--weights", str(tmp_path / "weights")),
        *("--measure-minutes", "0.01"),
    )
    assert status == 0, output
    assert "8 images, 2 classes (cat 4, dog 4); a class for each folder" in output
    stack = load_stack(tmp_path / "weights" / "pets")
    assert (stack.class_names, list(stack.pipelines)) == (("cat", "dog"), ["pets", "pets-uncond"])
    assert stack.classifier is not None
    assert stack.upsampler is not None
    assert stack.upsampler.network.config.image_size == 32
    assert stack.pipelines["pets"].upsampling is not None
    card = (tmp_path / "weights" / "pets" / "card.md").read_text()
    assert "`adm train`" in card
    assert "Not measured: guidance_scale: there is no judge" in card
    measured = json.loads((tmp_path / "weights" / "pets" / "measured.json").read_text())
    assert stack.pipelines["pets"].eps_scale in [float(each) for each in measured["eps_scale"]]
    status, output = run("runs", "list", str(tmp_path / "runs"))
    assert status == 0
    assert "diffusion" in output


@pytest.mark.slow
def test_stack_is_refused_or_found_complete_before_anything_is_trained(photos: Path, tmp_path: Path) -> None:
    def train(name: str, *more: str) -> tuple[int, str]:
        sizes = ("--steps", "2", "--batch-size", "2", "--image-size", "16", "--weights", str(tmp_path / "weights"))
        measured = ("--measure-minutes", "0")
        return run(
            "train-stack",
            "--images",
            str(photos),
            "--name",
            name,
            "--out",
            str(tmp_path / "runs"),
            *sizes,
            *measured,
            *more,
        )

    (tmp_path / "weights" / "taken").mkdir(parents=True)
    assert train("taken") == (1, f"adm: {tmp_path}/weights/taken: there is a stack of this name; give another --name\n")
    status, output = train("a/b")
    assert (status, "a name has letters" in output, (tmp_path / "runs").exists()) == (1, True, False)
    assert train("mine")[0] == 0
    assert train("mine") == (0, f"{tmp_path}/weights/mine: the stack is complete already\n")
    status, output = train("longer", "--steps", "3")
    assert (status, "optimiser.steps (2 before, 3 now)" in output) == (1, True)
    assert train("longer", "--steps", "3", "--allow-change", "optimiser.steps")[0] == 0


def test_images_named_in_a_configuration_file_override_those_of_its_preset(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('preset = "demo"\n[data]\npath = "/no/such/place"\n')
    assert run("train", str(path), "--dry-run") == (
        1,
        "adm: data.path: /no/such/place: there is no such file or folder\n",
    )


@pytest.mark.parametrize("kind", ["diffusion", "classifier", "judge", "upsampler"])
def test_dry_run_estimates_every_kind_of_network(tmp_path: Path, kind: str) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(4):
        Image.new("RGB", (20, 20), "red").save(tmp_path / "photos" / f"{'ab'[index % 2]}_{index}.png")
    network = {"image_size": 16, "model_channels": 32, "channel_mult": [1], "attention_sizes": []}
    if kind == "upsampler":
        network["small_size"] = 8
    optimiser = {"batch_size": 2, "steps": 2, "learning_rate": 1e-3}
    config = {"kind": kind, "network": network, "optimiser": optimiser, "data": {"path": str(tmp_path / "photos")}}
    (tmp_path / "run.json").write_text(json.dumps(config))
    status, output = run("train", str(tmp_path / "run.json"), "--dry-run")
    assert status == 0, output
    lines = [line.split("  ")[0] for line in output.splitlines()[1:]]  # the first line has the classes
    assert lines == ["network", "data", "device", "FLOPs a step", "memory", "speed", "time"]


@pytest.mark.slow
def test_one_class_makes_an_unguided_stack(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(4):
        Image.new("RGB", (20, 20), "red").save(tmp_path / "photos" / f"photo{index}.png")
    status, output = run(
        *("train-stack", "--images", str(tmp_path / "photos"), "--name", "plain", "--steps", "1", "--batch-size", "2"),
        *("--image-size", "16", "--out", str(tmp_path / "runs"), "--weights", str(tmp_path / "weights")),
        *("--measure-minutes", "0"),
    )
    assert status == 0, output
    stack = load_stack(tmp_path / "weights" / "plain")
    assert stack.classifier is None
    assert not stack.pipelines["plain"].conditional


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    data = {"path": str(write_npz(folder / "images.npz"))}
    train(config(data=data, saving={"snapshot_steps": 1, "keep_snapshots": 9}), Request(folder / "run"))
    return folder / "run"


def test_packed_weights_are_the_average(base: Path, tmp_path: Path) -> None:
    folder = add_stack([base], "tiny", tmp_path, dtype="fp32")
    packed = load_stack(folder).base.network.state_dict()
    average = read_state(base / STATE)["averages"]["0.9"]
    assert all(torch.equal(value, packed[name]) for name, value in average.items())


def test_width_of_the_average_is_chosen_afterwards(base: Path, tmp_path: Path) -> None:
    folder = add_stack([base], "narrow", tmp_path, dtype="fp32", width=0.1)
    packed = load_stack(folder).base.network.state_dict()
    average = read_state(base / STATE)["averages"]["power-0.1"]
    for name, value in average.items():
        torch.testing.assert_close(packed[name], value, atol=1e-5, rtol=1e-4)


def test_stack_is_refused_whole(base: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    for arguments, message in (
        (([base], "taken"), "there is a stack of this name"),
        (([base], "a/b"), "a name has letters"),
        (([base, base], "twice"), "both train a diffusion network"),
        (([tmp_path], "none"), "is .* a training run"),
        (([], "empty"), "none of the runs trains a diffusion network"),
    ):
        with pytest.raises(ValueError, match=message):
            add_stack(*arguments, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]


def test_command_adds_a_run_as_a_stack(base: Path, tmp_path: Path) -> None:
    status, output = run(
        "models", "add", str(base), "--name", "mine", "--weights", str(tmp_path), "--measure-minutes", "0"
    )
    assert status == 0, output
    assert list(json.loads((tmp_path / "mine" / "stack.json").read_text())["pipelines"]) == ["mine", "mine-uncond"]


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_presets_are_whole_configurations(name: str) -> None:
    given = read_config(read_fields({"data": {"path": "images"}}, name, {}))
    assert given.network_config(10).image_size == given.network.image_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "no"], "there is no preset 'no'"),
        (["--preset", "official-64"], "data.path is missing"),
        (["missing.toml"], "missing.toml: cannot be read"),
        (["--preset", "demo", "--images", "missing"], "data.path: "),
        (["--preset", "demo", "--allow-change", "optimiser.rate"], "optimiser.rate"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output = run("train", *arguments)
    assert (status, output.count("\n")) == (1, 1), output
    assert message in output


def test_unknown_field_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('preset = "demo"\n[optimiser]\nlearning_rat = 1\nsteps = "x"\n')
    status, output = run("train", str(path))
    assert status == 1
    assert "optimiser.learning_rat: is not a known field" in output
    assert "optimiser.steps: " in output


def test_schema_is_json() -> None:
    status, output = run("train", "--schema")
    assert status == 0
    assert "optimiser" in json.loads(output)["properties"]
