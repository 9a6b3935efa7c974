"""Statistics files: what was measured comes back, official arrays are understood, what does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.extractors import Features
from evaluation.frechet import Moments
from evaluation.scores import Statistics
from evaluation.statistics_file import is_statistics, read_statistics, write_statistics

SIZES = {"features": 3, "spatial_features": 6, "classes": 3}
EXTRACTOR: dict[str, Any] = {"name": "judge", "file": "j", "sha256": "aa", **SIZES}
PROVENANCE = {"source": "set", "images": 20, "size": "32x32", "sha256": "bb", "extractor": EXTRACTOR}


def features() -> Features:
    pooled = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    return Features(pooled, torch.cat([pooled, 2 * pooled], dim=1), pooled.softmax(dim=1))


def official(path: Path, **changed: Any) -> Path:
    arrays = {"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(6), "sigma_s": np.eye(6)} | changed
    np.savez(path, **{name: each for name, each in arrays.items() if each is not None})
    return path


def test_what_was_measured_comes_back_with_its_provenance(tmp_path: Path) -> None:
    write_statistics(tmp_path / "set.npz", features(), PROVENANCE)
    assert is_statistics(tmp_path / "set.npz")
    found = read_statistics(tmp_path / "set.npz", EXTRACTOR)
    assert isinstance(found.content, Features)
    for name in ("pooled", "spatial", "probabilities"):
        assert torch.equal(getattr(found.content, name), getattr(features(), name))
    assert found.provenance["sha256"] == "bb"
    assert [each.name for each in tmp_path.iterdir()] == ["set.npz"]


def test_statistics_of_an_extractor_without_classes_and_spatial_features_come_back_without_them(
    tmp_path: Path,
) -> None:
    pooled = features().pooled
    extractor = EXTRACTOR | {"name": "dinov2", "spatial_features": 0, "classes": 0}
    write_statistics(tmp_path / "set.npz", Features(pooled, None, None), PROVENANCE | {"extractor": extractor})
    found = read_statistics(tmp_path / "set.npz", extractor).content
    assert isinstance(found, Features)
    assert torch.equal(found.pooled, pooled)
    assert found.spatial is found.probabilities is None


def test_other_programs_find_the_official_arrays(tmp_path: Path) -> None:
    write_statistics(tmp_path / "set.npz", features(), PROVENANCE)
    spatial = features().spatial
    assert spatial is not None
    with np.load(tmp_path / "set.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["mu"], Moments.of(features().pooled).mean.numpy())
        assert np.array_equal(arrays["sigma_s"], Moments.of(spatial).covariance.numpy())


def test_official_arrays_are_moments(tmp_path: Path) -> None:
    found = read_statistics(official(tmp_path / "set.npz"), EXTRACTOR).content
    assert isinstance(found, Statistics)
    assert found.spatial is not None
    assert (len(found.pooled.mean), len(found.spatial.mean)) == (3, 6)
    without = read_statistics(official(tmp_path / "set.npz", mu_s=None, sigma_s=None), EXTRACTOR).content
    assert isinstance(without, Statistics)
    assert without.spatial is None


def test_official_files_are_distinguished_so_that_compare_does_not_mix_references(tmp_path: Path) -> None:
    one, other = official(tmp_path / "one.npz"), official(tmp_path / "other.npz", mu=np.ones(3))
    hashes = {read_statistics(each, EXTRACTOR).provenance["sha256"] for each in (one, other)}
    assert len(hashes) == 2


def test_an_official_file_of_pictures_and_moments_is_one_of_pictures(tmp_path: Path) -> None:
    assert is_statistics(official(tmp_path / "set.npz"))
    assert not is_statistics(official(tmp_path / "both.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8)))


def test_statistics_of_another_extractor_are_refused_by_name(tmp_path: Path) -> None:
    write_statistics(tmp_path / "set.npz", features(), PROVENANCE)
    with pytest.raises(ValueError, match=r"set\.npz: was made by another extractor, j \(aa\), not k \(cc\)$"):
        read_statistics(tmp_path / "set.npz", EXTRACTOR | {"file": "k", "sha256": "cc"})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mu": np.zeros(2048), "sigma": np.eye(2048)}, "are of 2048 features, the judge's are 3$"),
        ({"mu_s": np.zeros(9), "sigma_s": np.eye(9)}, "are of 9 spatial features, the judge's are 6$"),
        ({"mu": np.array([0, np.nan, 0])}, "mu has NaN or infinity$"),
        ({"sigma": np.full((3, 3), np.inf)}, "sigma has NaN or infinity$"),
        ({"sigma": np.eye(4)}, r"sigma is \(4, 4\) where mu has 3 values$"),
        ({"sigma": np.zeros(3)}, "floats of 2 dimensions are needed$"),
        ({"sigma": np.triu(np.ones((3, 3)))}, "sigma is no covariance: it is not symmetric$"),
        ({"sigma": -np.eye(3)}, "sigma is no covariance: it has the negative eigenvalue -1$"),
        ({"sigma_s": np.ones((6, 6)) - np.eye(6)}, "sigma_s is no covariance: it has the negative eigenvalue -1$"),
        ({"sigma": None}, "it has no 'sigma'$"),
        ({"mu": np.array([{}], dtype=object)}, "is damaged"),
        ({"provenance": np.array("nonsense")}, "its provenance is damaged"),
        ({"provenance": np.array(json.dumps(PROVENANCE | {"format": 9}))}, "is of format 9"),
        (
            {"provenance": np.array(json.dumps({"extractor": {"sha256": "aa"}, "format": 1}))},
            "its provenance is damaged",
        ),
        ({"provenance": np.array(json.dumps(PROVENANCE | {"format": 1}))}, "it has no 'pooled'"),
    ],
)
def test_fault_of_a_file_is_reported_in_one_line(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^\S*set\.npz: .*{message}"):
        read_statistics(official(tmp_path / "set.npz", **changed), EXTRACTOR)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = official(tmp_path / "set.npz")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"set\.npz: is no \.npz file, or is damaged"):
        is_statistics(path)
