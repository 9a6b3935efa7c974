"""Verifying and converting: each difference is named, a bad file is one line, and nothing half is left."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoints.network_file import WeightsError, blank_network, check_state, load_network, read_config
from models.checkpoints.presets import PRESETS, Preset
from models.checkpoints.provenance import read_provenance, recorded_hash, write_provenance
from models.checkpoints.tensor_file import read_tensors
from models.checkpoints.verify import convert, differences, preset_of, verify
from models.networks.unet import UNet, build_unet
from tests.models.samples import BASE, seeded

NAME = "64x64_classifier"
KEY = "input_blocks.1.0.in_layers.2.weight"


class Tiny(Preset):
    """A preset of a network small enough to write in a test."""

    config = BASE


TINY = Tiny("tiny", "diffusion", {"class_cond": True}, 0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pt"
    torch.save(seeded(build_unet(BASE), 0).state_dict(), path)
    return path


def blank(name: str) -> dict[str, Tensor]:
    state = blank_network(PRESETS[name].config).state_dict()
    return {key: torch.empty(1).expand(value.shape) for key, value in state.items()}  # no memory


def test_file_is_compared_with_the_preset_it_is_named_after() -> None:
    assert preset_of(Path("a/64x64_classifier.pt")) is PRESETS[NAME]
    assert preset_of(Path("other.pt"), NAME) is PRESETS[NAME]
    assert preset_of(Path("other.pt")) is None
    with pytest.raises(
        WeightsError, match=r"\Aother\.pt: no preset is named '63x63'; there are 64x64_classifier, .*\Z"
    ):
        preset_of(Path("other.pt"), "63x63")


def test_every_difference_is_named() -> None:
    tensors = {key: torch.zeros(()).expand(value.shape) for key, value in blank(NAME).items()}
    del tensors["time_embed.0.bias"]
    tensors["extra.weight"] = torch.zeros(2)
    tensors[KEY] = torch.zeros(128, 128, 1, 1)
    tensors["out.0.bias"] = torch.zeros(512, dtype=torch.int64)
    tensors["out.0.weight"] = torch.full((512,), torch.nan)
    tensors["time_embed.2.bias"] = torch.zeros(512, dtype=torch.float16)
    assert differences(tensors, PRESETS[NAME].config) == [
        "lacks time_embed.0.bias [512]",
        "has surplus extra.weight [2]",
        f"{KEY} has shape [128, 128, 1, 1], expected [128, 128, 3, 3]",
        "out.0.bias is of int64, expected float32",
        "out.0.weight has values that are not finite",
    ]


def test_whole_checkpoint_has_no_difference(checkpoint: Path) -> None:
    assert verify(checkpoint, read_tensors(checkpoint), BASE) == []


def test_file_that_is_not_the_one_recorded_is_reported(checkpoint: Path) -> None:
    write_provenance(checkpoint, "0" * 64)
    os.utime(checkpoint)
    assert verify(checkpoint, read_tensors(checkpoint), BASE) == [
        "has changed since it was recorded; if that is intended, delete its .json"
    ]


@pytest.mark.parametrize(("dtype", "suffix"), [(torch.float32, "32"), (torch.float16, "16"), (torch.bfloat16, "b16")])
def test_converted_file_contains_the_same_values_and_says_what_it_is(
    checkpoint: Path, dtype: torch.dtype, suffix: str
) -> None:
    target = checkpoint.with_name(f"{suffix}.safetensors")
    convert(checkpoint, target, dtype, TINY)
    written, source = load_file(target), torch.load(checkpoint, weights_only=True)
    assert list(written.keys() ^ source.keys()) == []
    assert all(torch.equal(value, source[key].to(dtype)) for key, value in written.items())
    assert read_config(target) == BASE
    assert {value.dtype for value in load_network(target, UNet).state_dict().values()} == {torch.float32}
    provenance = read_provenance(target)
    assert provenance is not None
    assert provenance.sha256 == recorded_hash(target)
    assert verify(target, read_tensors(target), BASE) == []


def too_large(tensors: dict[str, Tensor]) -> None:
    tensors[KEY][0, 0, 0, 0] = 1e6


def not_a_number(tensors: dict[str, Tensor]) -> None:
    tensors[KEY][0, 0, 0, 0] = torch.nan


def missing(tensors: dict[str, Tensor]) -> None:
    del tensors[KEY]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (too_large, f"{KEY} has values that are not finite as F16"),
        (not_a_number, f"is not tiny: {KEY} has values that are not finite"),
        (missing, f"is not tiny: lacks {KEY} [32, 32, 3, 3]"),
    ],
)
def test_checkpoint_that_cannot_be_converted_leaves_nothing(
    checkpoint: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    tensors = torch.load(checkpoint, weights_only=True)
    change(tensors)
    torch.save(tensors, checkpoint)
    with pytest.raises(WeightsError) as refused:
        convert(checkpoint, checkpoint.with_name("out.safetensors"), torch.float16, TINY)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [each.name for each in checkpoint.parent.iterdir()] == ["tiny.pt"]


def test_source_is_never_overwritten(checkpoint: Path) -> None:
    copy = checkpoint.with_suffix(".safetensors")
    convert(checkpoint, copy, torch.float32, TINY)
    with pytest.raises(WeightsError, match="is the file to convert"):
        convert(copy, copy, torch.float16, TINY)


@pytest.mark.parametrize(
    ("kept", "message"), [(0, "is empty"), (10, "is cut off after 10 bytes"), (5000, "is cut off")]
)
def test_truncated_checkpoint_is_one_line(checkpoint: Path, kept: int, message: str) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=rf"\A{checkpoint.parent.name}/tiny\.pt: {message}.*\Z"):
        load_network(checkpoint, UNet, config=BASE)


def test_checkpoint_of_another_preset_is_reported_by_its_name() -> None:
    other = blank_network(PRESETS["128x128_classifier"].config)
    with pytest.raises(WeightsError, match=r"\Amine\.pt: .*; its keys are those of 64x64_classifier\Z"):
        check_state(other, blank(NAME), "mine.pt")


def test_loaded_float32_weights_are_views_of_the_file(checkpoint: Path) -> None:
    network = load_network(checkpoint, UNet, config=BASE)
    storages = {value.untyped_storage().data_ptr() for value in network.state_dict().values()}
    mapped = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(checkpoint) in line]
    ranges = [tuple(int(end, 16) for end in each.split("-")) for each in mapped]
    assert all(any(low <= address < high for low, high in ranges) for address in storages)
