import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints.network_file import WeightsError, load_network, read_config, read_tensors, save_network
from models.networks.classifier import NoisyClassifier
from models.networks.judge import Judge, JudgeConfig
from models.networks.unet import SuperResUNet, UNet, build_unet
from tests.models.samples import BASE, seeded

KEY = "input_blocks.1.0.in_layers.2.weight"


@pytest.fixture
def base(stack_folder: Path) -> Path:
    return stack_folder / "base.safetensors"


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], None], **metadata: str) -> None:
    with safe_open(path, "pt") as file:
        written = {**file.metadata(), **metadata}
    tensors = read_tensors(path)
    change(tensors)
    save_file(tensors, path, written)


def keep(tensors: dict[str, Tensor]) -> None:
    """Return the state unchanged."""


def test_saved_network_comes_back_with_its_configuration(tmp_path: Path) -> None:
    path, saved = tmp_path / "base.safetensors", seeded(build_unet(BASE), 3)
    save_network(path, saved.state_dict(), BASE, dtype=torch.float32)
    loaded = load_network(path, UNet)
    assert read_config(path) == loaded.config == BASE
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_same_weights_make_the_same_file(tmp_path: Path) -> None:
    state = seeded(build_unet(BASE), 3).state_dict()
    written = []
    for attempt in range(4):  # the library writes two metadata in either order
        path = tmp_path / f"{attempt}.safetensors"
        save_network(path, state, BASE, dtype=torch.float16)
        written.append(path.read_bytes())
    assert len(set(written)) == 1


def test_loaded_network_is_ready_to_sample(base: Path) -> None:
    network = load_network(base, UNet)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}  # stored as float16


def test_judge_comes_back_too(tmp_path: Path) -> None:
    config = JudgeConfig(image_size=8, num_classes=3, widths=(32, 64))
    save_network(tmp_path / "judge.safetensors", Judge(config).state_dict(), config, dtype=torch.float16)
    judge = load_network(tmp_path / "judge.safetensors", Judge)
    assert judge.config == config
    assert judge(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors[KEY]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["extra.weight"] = torch.zeros(1)


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors[KEY] = tensors[KEY][:-1].contiguous()


def transpose(tensors: dict[str, Tensor]) -> None:
    tensors["time_embed.0.weight"] = tensors["time_embed.0.weight"].T.contiguous()


def poison(tensors: dict[str, Tensor]) -> None:
    tensors[KEY][0, 0, 0, 0] = torch.nan


def overflow(tensors: dict[str, Tensor]) -> None:
    tensors[KEY][0, 0, 0, 0] = torch.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, f"base.safetensors: lacks 1 key: {KEY}"),
        (add, "base.safetensors: has surplus 1 key: extra.weight"),
        (reshape, f"base.safetensors: {KEY} has shape [31, 32, 3, 3], expected [32, 32, 3, 3]"),
        (transpose, "base.safetensors: time_embed.0.weight has shape [32, 128], expected [128, 32]"),
        (poison, f"base.safetensors: {KEY} has values that are not finite"),
        (overflow, f"base.safetensors: {KEY} has values that are not finite"),
    ],
)
def test_state_dict_that_does_not_fit_is_refused_by_file_and_key(
    base: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    rewrite(base, change)
    with pytest.raises(WeightsError) as refused:
        load_network(base, UNet)
    assert str(refused.value) == f"{base.parent.name}/{message}"


def keep_one(tensors: dict[str, Tensor]) -> None:
    for key in list(tensors)[1:]:
        del tensors[key]


def test_list_of_many_wrong_keys_is_cut(base: Path) -> None:
    rewrite(base, keep_one)
    with pytest.raises(WeightsError, match=r"lacks \d\d+ keys: .*, .*, .* \.\.\.$"):
        load_network(base, UNet)


@pytest.mark.parametrize(
    ("kept", "message"),
    [(0, "is empty"), (7, "is no weights file"), (200, "is cut off or damaged"), (100_000, "is cut off or damaged")],
)
def test_truncated_file_is_refused_by_name(base: Path, kept: int, message: str) -> None:
    base.write_bytes(base.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=rf"^{base.parent.name}/base\.safetensors: {message}"):
        load_network(base, UNet)


def test_file_of_something_else_is_refused_by_name(base: Path) -> None:
    base.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(WeightsError, match=rf"^{base.parent.name}/base\.safetensors: is a web page"):
        load_network(base, UNet)


def test_missing_file_is_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.safetensors: there is no such weights file"):
        load_network(tmp_path / "gone.safetensors", UNet)


def test_safetensors_without_a_configuration_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=rf"^{tmp_path.name}/foreign\.safetensors: carries no network configuration"):
        load_network(path, UNet)


@pytest.mark.parametrize("expected", [NoisyClassifier, SuperResUNet])
def test_another_kind_of_network_is_refused(base: Path, expected: type[NoisyClassifier] | type[SuperResUNet]) -> None:
    with pytest.raises(WeightsError, match=rf"contains a UNet, expected a {expected.__name__}"):
        load_network(base, expected)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"image_size": 8}),
        json.dumps({**BASE.__dict__, "temperature": 1}),
        json.dumps({**BASE.__dict__, "num_head_channels": 7}),
        json.dumps({**BASE.__dict__, "model_channels": 33}),
        json.dumps({**BASE.__dict__, "model_channels": "wide"}),
        json.dumps({**BASE.__dict__, "channel_mult": 3}),
        json.dumps({**BASE.__dict__, "num_head_channels": 0}),
        json.dumps({**BASE.__dict__, "num_classes": -1}),
    ],
)
def test_configuration_that_makes_no_network_is_refused_by_name(base: Path, config: str) -> None:
    rewrite(base, keep, config=config)
    with pytest.raises(WeightsError, match=rf"^{base.parent.name}/base\.safetensors: "):
        load_network(base, UNet)


class Payload:
    """An attacker's pickle: code that runs when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_pickle_that_contains_code_is_refused_and_not_run(
    tmp_path: Path, writer: Callable[[object, Path], None], suffix: str
) -> None:
    path, trace = tmp_path / f"evil{suffix}", tmp_path / "ran"
    writer({"weight": Payload(trace)}, path)
    with pytest.raises(WeightsError, match=rf"^{tmp_path.name}/evil\{suffix}: "):
        read_tensors(path)
    with pytest.raises(WeightsError, match=rf"^{tmp_path.name}/evil\{suffix}: "):
        load_network(path, UNet)
    assert not trace.exists()


def test_pickle_of_plain_tensors_is_read(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(3.0)}, tmp_path / "official.pt")
    assert read_tensors(tmp_path / "official.pt")["weight"].tolist() == [0, 1, 2]
