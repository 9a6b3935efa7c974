"""Reads tensor files of every form without copying, and writes them one tensor at a time."""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from files.atomic import atomic_write
from models.checkpoints.file_form import Form, form_of, named, refuse_shard
from models.checkpoints.file_form import WeightsError as WeightsError
from models.checkpoints.file_form import shown as shown
from models.checkpoints.networks_in_files import Network, chosen, networks_in
from models.checkpoints.torch_file import read_torch

HEADER_START = 8  # bytes: a safetensors file begins with its header's length
ALIGNMENT = 64  # bytes of a cache line; aligns the data, so that mapped tensors are aligned like allocated ones
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def read_networks(path: Path) -> list[Network]:
    """The networks of a weights file of any form, the averaged first (`models.checkpoints.networks_in_files`).

    Tensors are views of the mapped file, in its order, so values are read only when they are used. A torch.save of the
    older form is read into memory, once. Raises: WeightsError.
    """
    refuse_shard(path)
    content = _read(path)
    with named(path):
        return networks_in(content)


def read_network(path: Path, where: str | None = None) -> Network:
    """The network at a place of a weights file, or the first of `read_networks`. Raises: WeightsError."""
    networks = read_networks(path)
    with named(path):
        return chosen(networks, where)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of the first of `read_networks`. Raises: WeightsError."""
    return read_network(path).tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for other forms. Raises: WeightsError."""
    if form_of(path) is not Form.SAFETENSORS:
        return {}
    with _safetensors(path) as file:
        return file.metadata() or {}


def _read(path: Path) -> object:
    match form := form_of(path):
        case Form.SAFETENSORS:
            with _safetensors(path) as file:
                return {key: file.get_tensor(key) for key in file.offset_keys()}
        case Form.INDEX:
            return _shards(path)
        case _:
            return read_torch(path, form)


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(shown(path), f"is cut off or damaged ({error}); fetch it again") from error


def _shards(path: Path) -> dict[object, object]:
    """All tensors of the shards in an index, in the form of transformers and diffusers."""
    try:
        files = set(json.loads(path.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(shown(path), "is no index of shards: it has no weight_map") from error
    together: dict[object, object] = {}
    for name in sorted(map(str, files)):
        if Path(name).name != name or not (path.parent / name).is_file():
            raise WeightsError(shown(path), f"names the shard {name!r}, which is not beside it")
        content = _read(path.parent / name)
        together |= content if isinstance(content, dict) else {}
    return together


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file atomically, floating tensors cast to dtype; returns the file's sha256.

    The header is written first and then one tensor after the other, in the given order, so that memory has a second
    copy of only one tensor. Equal tensors make equal bytes.
    Raises: WeightsError for a value that is not finite, or not in dtype; then no file is left.
    """
    digest = hashlib.sha256()
    with atomic_write(path) as file:
        _write(file, digest, _header(tensors, dtype, metadata))
        for key, value in tensors.items():
            _write(file, digest, _content(path.name, key, value, dtype))
    return digest.hexdigest()


def is_finite(value: Tensor) -> bool:
    """Return whether no value is NaN or infinite.

    Both propagate through a sum, which is as fast as memory. Only a sum that is not finite needs a second check,
    because large values may overflow it. Uses numpy if possible: torch wakes its threads for each tensor, which on a
    busy machine took ten times as long as the sum.
    """
    if not value.is_floating_point():
        return True
    if value.dtype is torch.float32 and value.device.type == "cpu":
        with np.errstate(all="ignore"):
            total = float(value.detach().numpy().sum())
    else:
        total = value.sum(dtype=torch.promote_types(value.dtype, torch.float32)).item()
    return math.isfinite(total) or bool(torch.isfinite(value).all())


def _stored(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if value.is_floating_point() else value.dtype


def _header(tensors: Mapping[str, Tensor], dtype: torch.dtype, metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for key, value in tensors.items():
        kind = _stored(value, dtype)
        start, end = end, end + value.numel() * kind.itemsize
        entries[key] = {"dtype": DTYPE_NAMES[kind], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(HEADER_START + len(text)) % ALIGNMENT)
    return len(text).to_bytes(HEADER_START, "little") + text


def _content(name: str, key: str, value: Tensor, dtype: torch.dtype) -> memoryview:
    stored = value.detach().to("cpu", _stored(value, dtype)).contiguous()
    if not is_finite(stored):
        raise WeightsError(name, f"{key} has values that are not finite" + _overflow(value, dtype))
    return stored.reshape(-1).view(torch.uint8).numpy().data


def _overflow(value: Tensor, dtype: torch.dtype) -> str:
    return f" as {DTYPE_NAMES[dtype]}" if is_finite(value) else ""


def _write(file: IO[bytes], digest: "hashlib._Hash", content: bytes | memoryview) -> None:
    digest.update(content)
    file.write(content)
