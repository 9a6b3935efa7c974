"""Reads files of torch.save, in the zip form and the older one, with torch's restricted unpickler."""

import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, cast

import torch

from models.checkpoints.file_form import Form, WeightsError, shown

LEGACY_PICKLES = 4  # magic number, version, system, and then the object; its tensors' values follow


class Ignored:
    """Replaces objects of other classes in a pickle: accepts any call and keeps nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> "Ignored":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class PlainMapping:
    """Replaces mappings of other classes, such as settings, by an ordered mapping that torch fills."""

    def __new__(cls, *args: object, **kwargs: object) -> "PlainMapping":
        return cast("PlainMapping", OrderedDict())


def read_torch(path: Path, form: Form) -> object:
    """Return the object of a file. Tensors are mapped if the form allows it; objects of other classes are `Ignored`.

    Only names on torch's own allow list are called. Names of other classes are replaced by `Ignored` or `PlainMapping`,
    and a name that runs a program is refused. Raises: WeightsError.
    """
    zipped = form is Form.TORCH_ZIP
    mapped = zipped and path.suffix != ".safetensors"  # torch.load reads a path with this suffix as safetensors
    try:
        with _pickles(path, zipped) as stream:
            names = _names(stream, 1 if zipped else LEGACY_PICKLES)
        # torch uses its own list first; a class counts as a mapping if its name ends in "dict", as EasyDict does
        stand_ins: list[Any] = [(PlainMapping if name.lower().endswith("dict") else Ignored, name) for name in names]
        with torch.serialization.safe_globals(stand_ins), path.open("rb") as file:
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds of errors for a damaged or hostile file
        raise WeightsError(shown(path), _reason(error)) from error


def _pickles(path: Path, zipped: bool) -> IO[bytes]:
    if not zipped:
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:  # the returned member keeps the file open
        return archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def _names(stream: IO[bytes], pickles: int) -> set[str]:
    """The dotted names of all classes and functions in pickles, read without running anything.

    Names of protocol 2 are Python 2's, and are translated.
    """
    found: set[str] = set()
    for _ in range(pickles):
        for op, arg, _ in pickletools.genops(stream):
            if op.name == "GLOBAL":
                module, _, name = str(arg).partition(" ")
                found.add(".".join(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))))
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return (
            "contains code to run, or objects that torch's restricted unpickler refuses, and was not loaded; "
            "if you trust it, save its state_dict() alone"
        )
    return f"is cut off or damaged, and cannot be read as tensors ({type(error).__name__}); fetch it again"
