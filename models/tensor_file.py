"""Tensor files: read without copying, written a tensor at a time, and never through a free pickle."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

HEADER_START = 8  # bytes: a safetensors file begins with its header's length
ALIGNMENT = 64  # bytes of a cache line: where the data begin, so that mapped tensors are as aligned as allocated ones
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


class WeightsError(Exception):
    """A weights file that cannot be used: one line that names the file and the key."""


def shown(path: Path) -> str:
    """A file as messages name it: with its folder, since every stack has a file of that name."""
    return str(Path(*path.parts[-2:]))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file or of a PyTorch file of plain tensors (weights_only), in the file's order.

    They are views of the mapped file: nothing is read until a value is looked at. Raises: WeightsError.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in file.offset_keys()}
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged or hostile file
        raise WeightsError(f"{shown(path)}: cannot be read as plain tensors ({type(error).__name__})") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{shown(path)}: is not a state dict of tensors")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The text beside the tensors of a safetensors file. Raises: WeightsError."""
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{shown(path)}: not a readable safetensors file ({error})") from error


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file atomically, floating tensors cast to dtype; returns the file's sha256.

    The header comes first and then one tensor after the other, in the order given, so that of the whole only one
    tensor is ever held a second time. The same tensors make the same bytes.
    Raises: WeightsError for a value that is not finite, or not in dtype; nothing is left behind then.
    """
    partial = path.with_name(path.name + ".partial")
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            _write(file, digest, _header(tensors, dtype, metadata))
            for key, value in tensors.items():
                _write(file, digest, _content(path.name, key, value, dtype))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return digest.hexdigest()


def is_finite(value: Tensor) -> bool:
    """Whether no value is NaN or infinite.

    A sum carries both to its end at the speed of memory; only a sum that is not finite needs a second look, since
    large values may overflow it. In numpy where it can be: torch wakes its threads for each tensor, which on a busy
    machine took ten times as long as the sum.
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
        raise WeightsError(f"{name}: {key} holds values that are not finite" + _overflow(value, dtype))
    return stored.reshape(-1).view(torch.uint8).numpy().data


def _overflow(value: Tensor, dtype: torch.dtype) -> str:
    return f" as {DTYPE_NAMES[dtype]}" if is_finite(value) else ""


def _write(file: IO[bytes], digest: "hashlib._Hash", content: bytes | memoryview) -> None:
    digest.update(content)
    file.write(content)
