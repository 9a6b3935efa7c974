"""What torch.save wrote, in its zip form and in the older one, read by torch's restricted unpickler."""

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
    """Stands for an object of any class beside the tensors, as trainers pickle them: takes all and keeps nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> "Ignored":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class Kept:
    """Stands for a mapping of any class, as settings often are: an ordered one, which torch fills."""

    def __new__(cls, *args: object, **kwargs: object) -> "Kept":
        return cast("Kept", OrderedDict())


def read_torch(path: Path, form: Form) -> object:
    """The object of a file, its tensors mapped where the form allows it, its other objects `Ignored`.

    Only torch's own list of harmless names is ever called; a name of another class stands for `Ignored` or `Kept`, and
    a name that runs a program is refused. Raises: WeightsError.
    """
    zipped = form is Form.TORCH_ZIP
    mapped = zipped and path.suffix != ".safetensors"  # by its name alone torch.load would take it for one
    try:
        with _pickles(path, zipped) as stream:
            names = _names(stream, 1 if zipped else LEGACY_PICKLES)
        # torch looks in its own list first; a class is a mapping if its name says so, as EasyDict and defaultdict do
        stand_ins: list[Any] = [(Kept if name.lower().endswith("dict") else Ignored, name) for name in names]
        with torch.serialization.safe_globals(stand_ins), path.open("rb") as file:
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises a dozen kinds for a damaged or hostile file
        raise WeightsError(f"{shown(path)}: {_reason(error)}") from error


def _pickles(path: Path, zipped: bool) -> IO[bytes]:
    if not zipped:
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:  # stays open underneath for as long as the member is
        return archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def _names(stream: IO[bytes], pickles: int) -> set[str]:
    """Every class and function that pickles name, dotted; read without running anything.

    Protocol 2 writes the names of Python 2.
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
            "holds code to run, or objects that torch's restricted unpickler refuses, and was not loaded; "
            "if you trust it, save its state_dict() alone"
        )
    return f"is cut off or damaged, and cannot be read as tensors ({type(error).__name__}); fetch it again"
