"""Weights files in the forms that people have: each gives the same network, or one line that says what the file is."""

import argparse
import gzip
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from cli.main import app
from models.checkpoints.file_form import WeightsError
from models.checkpoints.network_file import load_network
from models.checkpoints.tensor_file import read_network, read_networks, read_tensors
from models.checkpoints.verify import differences
from models.networks.unet import UNet, build_unet
from tests.models.samples import BASE, seeded

Wrap = Callable[[dict[str, Tensor]], Any]
RUN = CliRunner()


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(seeded(build_unet(BASE), 0).state_dict())


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def zeroed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros_like(value) for key, value in state.items()}


def lightning(state: dict[str, Tensor]) -> object:
    hyper = argparse.Namespace(lr=1e-4, path=Path("runs"))
    return {"epoch": 3, "state_dict": under("model.", state), "hyper_parameters": hyper, "callbacks": {Path: {}}}


def compiled(state: dict[str, Tensor]) -> object:
    return {key.replace("input_blocks.1.", "input_blocks.1._orig_mod."): value for key, value in state.items()}


def half_convolutions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model as the official convert_to_fp16 leaves it: only the convolutions of the three bodies are float16."""
    network = build_unet(BASE)
    network.load_state_dict(state)
    for name, module in network.named_modules():
        if name.startswith(("input_", "middle_", "output_")) and isinstance(module, nn.Conv1d | nn.Conv2d):
            module.half()
    return dict(network.state_dict())


class AttributeDict(dict[str, Any]):
    """A dict subclass, as configuration libraries define one."""


OBJECTS = [frozenset({1}), range(3), slice(1), Decimal(1), datetime(2026, 1, 1, tzinfo=UTC), np.float64(1), np.zeros(2)]
WRAPPINGS: dict[str, tuple[Wrap, str]] = {
    "bare": (lambda state: state, ""),
    "state_dict": (lambda state: {"state_dict": state, "epoch": 4}, "state_dict"),
    "DataParallel": (lambda state: under("module.", state), "module"),
    "torch.compile": (lambda state: under("_orig_mod.", state), ""),
    "torch.compile of a block": (compiled, ""),
    "DDP of a compiled one": (lambda state: under("module._orig_mod.", state), "module"),
    "Lightning": (lightning, "state_dict.model"),
    "mapping of a class": (
        lambda state: AttributeDict(state_dict=state, counts=defaultdict(list, a=[1])),
        "state_dict",
    ),
    "a trainer's objects": (lambda state: {"state_dict": state, "beside": OBJECTS}, "state_dict"),
    "parameters": (lambda state: {key: nn.Parameter(value) for key, value in state.items()}, ""),
    "averaged beside trained": (lambda state: {"model": zeroed(state), "ema": state, "opt": {"state": {}}}, "ema"),
    "model_ema": (lambda state: {"step": 1, "model_state": zeroed(state), "model_ema": state}, "model_ema"),
    "ema-pytorch": (lambda state: under("online_model.", zeroed(state)) | under("ema_model.", state), "ema_model"),
    "SWA": (lambda state: under("module.", state) | {"n_averaged": torch.tensor(3)}, "module"),
    "EMA inside a bare one": (lambda state: zeroed(state) | {"ema": under("module.", state)}, "ema.module"),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", WRAPPINGS)
def test_network_is_found_in_every_wrapping(tmp_path: Path, state: dict[str, Tensor], name: str, legacy: bool) -> None:
    wrap, where = WRAPPINGS[name]
    path = tmp_path / "mine.pt"
    torch.save(wrap(state), path, _use_new_zipfile_serialization=not legacy)
    first = read_networks(path)[0]
    assert first.where == where
    assert first.tensors.keys() == state.keys()
    assert all(torch.equal(first.tensors[key], value) for key, value in state.items())
    loaded = load_network(path, UNet, config=BASE)
    assert torch.equal(loaded.state_dict()["out.2.weight"], state["out.2.weight"])


def test_other_network_of_a_file_is_read_at_its_place(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"model": state, "ema": zeroed(state)}, tmp_path / "run.pt")
    assert torch.equal(read_network(tmp_path / "run.pt", "model").tensors["out.2.weight"], state["out.2.weight"])
    with pytest.raises(WeightsError, match=r"run\.pt: has no weights at 'weights'; there are 'ema', 'model'\Z"):
        read_network(tmp_path / "run.pt", "weights")
    for command in (["verify"], ["convert", "--dtype", "fp16"]):
        out = [str(tmp_path / "out.safetensors")] if command[0] == "convert" else []
        result = RUN.invoke(app, ["models", command[0], str(tmp_path / "run.pt"), *out, *command[1:]])
        assert "adm: of its networks, that at 'ema'; others at 'model' (--weights-at)" in result.output


@pytest.mark.parametrize("name", ["mine.pt", "mine.safetensors", "mine.bin"])
def test_safetensors_are_known_by_their_bytes(tmp_path: Path, state: dict[str, Tensor], name: str) -> None:
    save_file(under("module.", state), tmp_path / name)
    assert read_tensors(tmp_path / name).keys() == state.keys()


def test_shards_are_read_through_their_index(tmp_path: Path, state: dict[str, Tensor]) -> None:
    keys = list(state)
    parts = {f"net-0000{n}-of-00002.safetensors": keys[n - 1 :: 2] for n in (1, 2)}
    for name, share in parts.items():
        save_file({key: state[key] for key in share}, tmp_path / name)
    index = tmp_path / "net.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: name for name, share in parts.items() for key in share}}))
    assert read_tensors(index).keys() == state.keys()
    with pytest.raises(WeightsError, match=r"is shard 1 of 2; give their index, net\.safetensors\.index\.json\Z"):
        read_tensors(tmp_path / "net-00001-of-00002.safetensors")
    (tmp_path / "net-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        WeightsError, match=r"names the shard 'net-00002-of-00002\.safetensors', which is not beside it"
    ):
        read_tensors(index)


def test_file_of_mixed_precision_is_whole(state: dict[str, Tensor]) -> None:
    mixed = half_convolutions(state)
    assert {value.dtype for value in mixed.values()} == {torch.float16, torch.float32}
    assert differences(mixed, BASE) == []


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, np.zeros((1, 8, 8, 3), np.uint8))
    return buffer.getvalue()


def tar(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def optimizer_state() -> object:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    return optimizer.state_dict()


class Model(nn.Module):
    """Pickled whole, as `torch.save(model)` does."""


FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS"),
    "web page": (b"\n <!DOCTYPE html><html>Sign in</html>" * 50, "is a web page"),
    "mirror's XML": (b"\xef\xbb\xbf<?xml version='1.0'?><Error>NoSuchKey</Error>", "is a web page"),
    "gzip": (gzip.compress(b"weights"), "is compressed by gzip; unpack it"),
    "tar archive": (tar("weights/a.pt"), "is a tar archive"),
    "torch's tar": (tar("sys_info", "pickle", "storages", "tensors"), "tar form (before torch 0.1.10)"),
    "numpy arrays": (npz(), "is an .npz of numpy arrays"),
    "JSON": (b'{"a": 1}', "is JSON, without tensors"),
    "text": (b"not a checkpoint", "is no weights file: it begins with b'not a ch'"),
    "another pickle": (b"\x80\x04}\x94.", "is a pickle that torch.save did not write"),
    "cut-off zip": (saved({"a": torch.zeros(99)})[:-99], "is cut off after"),
    "cut-off legacy": (
        saved({"a": torch.zeros(99)}, _use_new_zipfile_serialization=False)[:-99],
        "is cut off or damaged",
    ),
    "optimizer": (saved(optimizer_state()), "is the state of an optimizer; the weights are in another file"),
    "whole model": (saved(Model()), "a pickled model or object; save its state_dict()"),
    "list": (saved([torch.zeros(1)]), "contains a list, and no state dict"),
    "run's bookkeeping": (saved({"step": 3, "args": {}}), "contains no state dict of an ADM network, but step, args"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_network_is_one_line_that_says_what_it_is(tmp_path: Path, name: str, suffix: str) -> None:
    content, message = FOREIGN[name]
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(content)
    for arguments in (["inspect", path], ["verify", path], ["convert", path, tmp_path / "out.safetensors"]):
        result = RUN.invoke(app, ["models", *map(str, arguments)])
        assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output
        assert f"{tmp_path.name}/mine{suffix}: " in result.output
        assert message in result.output
    assert not (tmp_path / "out.safetensors").exists()


WRITTEN = [
    saved({"model": {"input_blocks.0.0.weight": torch.ones(4)}}),
    saved({"model": {"input_blocks.0.0.weight": torch.ones(4)}}, _use_new_zipfile_serialization=False),
    tar("weights/a.pt"),
]


@given(
    written=st.sampled_from(WRITTEN),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.none() | st.integers(0, 4000),
)
@example(written=WRITTEN[0], changes=[(len(WRITTEN[0]) - 40, 255)], cut=None)
def test_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    written: bytes,
    changes: list[tuple[int, int]],
    cut: int | None,
) -> None:
    data = bytearray(written)
    for place, value in changes:
        data[-1 - place % len(data)] = value  # from the end, where a zip has its directory
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(data[: cut if cut is None else cut % len(data)])
    with suppress(WeightsError):
        read_networks(path)


OTHERS: dict[str, tuple[dict[str, Tensor], str]] = {
    "consistency model": (
        {"input_blocks.0.0.weight": torch.zeros(8, 3, 3, 3), "middle_block.1.qkv.weight": torch.zeros(24, 8, 1, 1)},
        "a consistency model",
    ),
    "diffusers": (
        {"conv_in.weight": torch.zeros(8, 3, 3, 3), "down_blocks.0.x": torch.zeros(1)},
        "layout of diffusers",
    ),
    "latent diffusion": (
        under(
            "model.diffusion_model.",
            {
                "input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3),
                "input_blocks.1.1.transformer_blocks.0.norm1.weight": torch.zeros(8),
            },
        ),
        "a UNet with cross-attention",
    ),
    "ResNet": ({"conv1.weight": torch.zeros(8, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(1)}, "of clean images"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_network_is_named_in_every_command(tmp_path: Path, name: str) -> None:
    tensors, message = OTHERS[name]
    path = tmp_path / "mine.pt"
    torch.save(tensors, path)
    for arguments in (["inspect", path], ["verify", path], ["convert", path, tmp_path / "out.safetensors"]):
        result = RUN.invoke(app, ["models", *map(str, arguments)])
        assert result.exit_code == 1
        assert f"mine.pt: no ADM network but {message}" in result.output or message in result.output.splitlines()[0]
    with pytest.raises(WeightsError, match=message):
        load_network(path, UNet, config=BASE)


def test_all_differences_can_be_read_without_a_preset(tmp_path: Path, state: dict[str, Tensor]) -> None:
    kept = {key: value for key, value in state.items() if not key.startswith("middle_block.0.in_layers")}
    torch.save({"state_dict": kept}, tmp_path / "mine.pt")
    flags = ["--num-head-channels", "16", "--no-use-new-attention-order", "--image-size", "8", "--no-predict-xstart"]
    flags += ["--noise-schedule", "linear", "--diffusion-steps", "1000"]
    converted = RUN.invoke(
        app, ["models", "convert", str(tmp_path / "mine.pt"), str(tmp_path / "o.safetensors"), *flags]
    )
    assert f"(and 3 more: adm models verify {tmp_path / 'mine.pt'})" in converted.output
    result = RUN.invoke(app, ["models", "verify", str(tmp_path / "mine.pt")])
    assert result.exit_code == 1
    assert [line.split()[1:3] for line in result.output.splitlines()] == [
        ["lacks", "middle_block.0.in_layers.0.weight"],
        ["lacks", "middle_block.0.in_layers.0.bias"],
        ["lacks", "middle_block.0.in_layers.2.weight"],
        ["lacks", "middle_block.0.in_layers.2.bias"],
        ["4", "differences"],
    ]


def test_inspect_names_the_places_and_claims_nothing_of_dropout(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"model": half_convolutions(state), "ema": state}, tmp_path / "mine.pt")
    arguments = ["models", "inspect", str(tmp_path / "mine.pt"), "--weights-at", "model"]
    output = RUN.invoke(app, arguments, env={"COLUMNS": "200"}).output
    rows = {
        row[0]: row[1] for line in output.splitlines() if len(row := [c.strip() for c in line.split("│")[1:-1]]) == 2
    }
    assert rows["weights at"] == "model"
    assert rows["--weights-at also takes"] == "ema"
    assert rows["dtypes"] == "float16, float32"
    assert "dropout" not in output
