"""Statistics files: the measurements of a reference, made once.

mu, sigma, mu_s and sigma_s are the official evaluator's arrays, of pooled and of spatial features. Files written here
also contain the features, and their provenance as JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.pictures import DAMAGE, IMAGES_MEMBER, npz_members
from evaluation.extractors import OUTPUTS, Features
from evaluation.feature_files import KeptFeatures
from evaluation.frechet import Moments
from evaluation.scores import Reference, Statistics
from files.atomic import atomic_write
from files.npz import stored_array
from models.checkpoints.provenance import hash_file
from vocabulary.counts import counted

FORMAT = 1
PROVENANCE = "provenance.npy"
MOMENT_ARRAYS = {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
COVARIANCE_ROUNDING = 1e-3  # share of the largest entry: float16's rounding; float32 sums of 50,000 images have less
FIELDS = ("source", "images", "size", "sha256")  # fields of every file's provenance


@dataclass(frozen=True)
class Measured:
    """One side of a comparison: its features or statistics, their provenance, and the files of the measurement."""

    content: Reference
    provenance: Mapping[str, Any]
    kept: KeptFeatures | None = None


def is_statistics(path: Path) -> bool:
    """Return whether a file is a statistics file. Raises: ValueError for a damaged .npz.

    Official reference files contain pictures and Inception's moments; they count as pictures, which are measured again.
    """
    if path.suffix != ".npz" or not path.is_file():
        return False
    members = npz_members(path)
    return PROVENANCE in members or ("mu.npy" in members and IMAGES_MEMBER not in members)


def write_statistics(path: Path, features: Features, provenance: Mapping[str, Any]) -> None:
    """Write the statistics of a set, atomically."""
    found = {name: each for name in OUTPUTS if (each := getattr(features, name)) is not None}
    arrays: dict[str, Any] = {name: each.numpy() for name, each in found.items()}
    for name, (mean, covariance) in MOMENT_ARRAYS.items():
        if name in found:
            moments = Moments.of(found[name])
            arrays |= {mean: moments.mean.numpy(), covariance: moments.covariance.numpy()}
    arrays["provenance"] = np.array(json.dumps(dict(provenance) | {"format": FORMAT}))
    with atomic_write(path, many_writers=True) as file:
        np.savez(file, **arrays)


def read_statistics(path: Path, extractor: Mapping[str, Any]) -> Measured:
    """Read a statistics file for an extractor with this identity.

    Raises: ValueError, one line, for a damaged file and for statistics of another extractor.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name not in OUTPUTS}
        arrays |= {name: mapped_array(path, name) for name in OUTPUTS if f"{name}.npy" in npz_members(path)}
    except (ValueError, *DAMAGE) as error:
        raise ValueError(f"{path}: is damaged ({error})") from error
    try:
        return (_own if "provenance" in arrays else _official)(path, arrays, extractor)
    except KeyError as error:
        raise ValueError(f"{path}: is no statistics file: it has no {error}") from error


def mapped_array(path: Path, name: str) -> Any:
    """An array of an .npz that numpy.savez wrote, mapped from the file. Raises: ValueError for a compressed one."""
    stored = stored_array(path, name)
    return np.memmap(path, stored.descr, "c", offset=stored.offset, shape=stored.shape)


def _own(path: Path, arrays: Mapping[str, Any], extractor: Mapping[str, Any]) -> Measured:
    try:
        provenance: dict[str, Any] = json.loads(str(arrays["provenance"]))
        made_by, version = provenance["extractor"]["sha256"], provenance["format"]
        for name in FIELDS:
            provenance[name]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: its provenance is damaged ({error})") from error
    if version != FORMAT:
        raise ValueError(f"{path}: is of format {version}, this version reads {FORMAT}; make it again")
    if made_by != extractor["sha256"]:
        other = f"{provenance['extractor'].get('file')} ({made_by})"
        raise ValueError(
            f"{path}: was made by another extractor, {other}, not {extractor['file']} ({extractor['sha256']})"
        )
    present = [name for name, size in OUTPUTS.items() if extractor[size]]
    found = {name: torch.from_numpy(_finite(path, name, arrays[name], 2)) for name in present}
    counts = [len(each) for each in found.values()]
    if len(set(counts)) > 1 or counts[0] < 2:
        raise ValueError(f"{path}: is damaged: it has features of {', '.join(map(str, counts))} images")
    features = Features(found["pooled"], found.get("spatial"), found.get("probabilities"))
    return Measured(features, provenance | {"source": str(path)})


def official_statistics(path: Path, extractor: Mapping[str, Any], features: Features) -> Statistics | None:
    """The moments in an official reference file, beside the features of its pictures; None if it has none.

    Raises: ValueError for moments of another extractor.
    """
    if "mu.npy" not in npz_members(path):
        return None
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name != IMAGES_MEMBER.removesuffix(".npy")}
    try:
        found = _statistics(path, arrays, extractor)
    except KeyError as error:
        raise ValueError(f"{path}: has mu and no {error}") from error
    return replace(found, features=features)


def _official(path: Path, arrays: Mapping[str, Any], extractor: Mapping[str, Any]) -> Measured:
    found = _statistics(path, arrays, extractor)
    return Measured(found, {"source": str(path), "images": None, "size": None, "sha256": hash_file(path)})


def _statistics(path: Path, arrays: Mapping[str, Any], extractor: Mapping[str, Any]) -> Statistics:
    pooled = _moments(path, arrays, "mu", "sigma")
    spatial = _moments(path, arrays, "mu_s", "sigma_s") if "mu_s" in arrays else None
    for moments, name in ((pooled, "features"), (spatial, "spatial_features")):
        if moments is not None and len(moments.mean) != extractor[name]:
            kind = (
                f"are of {len(moments.mean)} {name.replace('_', ' ')}, the {extractor['name']}'s are {extractor[name]}"
            )
            raise ValueError(f"{path}: was made by another extractor: its statistics {kind}")
    return Statistics(pooled, spatial)


def _moments(path: Path, arrays: Mapping[str, Any], mean: str, covariance: str) -> Moments:
    mu, sigma = _finite(path, mean, arrays[mean], 1), _finite(path, covariance, arrays[covariance], 2)
    if sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{path}: {covariance} is {sigma.shape} where {mean} has {counted(len(mu), 'value')}")
    exact: list[Tensor] = [torch.from_numpy(np.asarray(each, np.float64)) for each in (mu, sigma)]
    _refuse_no_covariance(path, covariance, exact[1])
    return Moments(*exact)


def _refuse_no_covariance(path: Path, name: str, matrix: Tensor) -> None:
    """Refuse a matrix [D, D] that no features have, up to rounding. Raises: ValueError."""
    largest = float(matrix.abs().max())
    if float((matrix - matrix.T).abs().max()) > COVARIANCE_ROUNDING * largest:
        raise ValueError(f"{path}: {name} is no covariance: it is not symmetric")
    least = float(torch.linalg.eigvalsh(matrix)[0])
    if least < -COVARIANCE_ROUNDING * largest:
        raise ValueError(f"{path}: {name} is no covariance: it has the negative eigenvalue {least:.3g}")


def _finite(path: Path, name: str, array: Any, dimensions: int) -> Any:
    if not np.issubdtype(array.dtype, np.floating) or array.ndim != dimensions:
        raise ValueError(f"{path}: {name} is {array.dtype} {array.shape}; floats of {dimensions} dimensions are needed")
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: {name} has NaN or infinity")
    return array
