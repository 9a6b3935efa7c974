"""Features are stored while a set is measured.

A resumed measurement gives the same features, changed pixels are measured again, and only one process measures a set
at a time.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.extractors import SHIPPED_JUDGE, Features, JudgeExtractor
from evaluation.feature_files import JOURNAL, Work
from evaluation.sources import measure

IMAGES, BATCHES = 250, 3


class CountingJudge(JudgeExtractor):
    """The shipped judge, which knows how many batches it was shown."""

    calls = 0

    def __call__(self, pixels: Tensor) -> Features:
        self.calls += 1
        return super().__call__(pixels)


class KilledError(Exception):
    """A kill, as an exception: nothing after it runs."""


@pytest.fixture
def judge() -> CountingJudge:
    return CountingJudge(SHIPPED_JUDGE)


@pytest.fixture
def samples(tmp_path: Path) -> str:
    return write(tmp_path / "samples.npz", seed=0)


def write(path: Path, seed: int, count: int = IMAGES) -> str:
    np.savez(path, np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8))
    return str(path)


def features_of(
    source: str, judge: CountingJudge, folder: Path, on_images: Callable[[int], None] = lambda images: None
) -> tuple[Features, str]:
    with Work(folder) as work:
        found = measure(source, judge, None, work, "samples", strict=False, on_total=print, on_images=on_images)
    assert isinstance(found.content, Features)
    return found.content, found.provenance["sha256"]


def kill_after(batches: int) -> Callable[[int], None]:
    left = iter(range(batches - 1))

    def on_images(images: int) -> None:
        if next(left, None) is None:
            raise KilledError

    return on_images


def equal(a: tuple[Features, str], b: tuple[Features, str]) -> bool:
    names = ("pooled", "spatial", "probabilities")
    return a[1] == b[1] and all(torch.equal(getattr(a[0], name), getattr(b[0], name)) for name in names)


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_killed_measurement_continues_after_its_last_batch(
    judge: CountingJudge, samples: str, tmp_path: Path, done: int
) -> None:
    whole = features_of(samples, judge, tmp_path / "whole")
    with pytest.raises(KilledError):
        features_of(samples, judge, tmp_path / "killed", kill_after(done))
    judge.calls = 0
    assert equal(features_of(samples, judge, tmp_path / "killed"), whole)
    assert judge.calls == BATCHES - done


def test_a_line_that_a_kill_cut_off_is_measured_again(judge: CountingJudge, samples: str, tmp_path: Path) -> None:
    whole = features_of(samples, judge, tmp_path / "work")
    (journal,) = (tmp_path / "work").glob(f"*/{JOURNAL}")
    journal.write_bytes(journal.read_bytes()[:-10])
    judge.calls = 0
    assert equal(features_of(samples, judge, tmp_path / "work"), whole)
    assert judge.calls == 1


@pytest.mark.parametrize("count", [IMAGES, 120])
def test_other_pixels_under_the_same_name_are_measured_again(
    judge: CountingJudge, samples: str, tmp_path: Path, count: int
) -> None:
    features_of(samples, judge, tmp_path / "work")
    write(Path(samples), seed=1, count=count)
    found = features_of(samples, judge, tmp_path / "work")
    assert equal(found, features_of(samples, judge, tmp_path / "new"))
    assert len(found[0].pooled) == count


def test_batches_come_in_any_order(judge: CountingJudge, tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    with Work(tmp_path) as work:
        there, back = work.kept("samples", "there", judge), work.kept("samples", "back", judge)
        for kept, order in ((there, (0, 1)), (back, (1, 0))):
            for half in order:
                indices = [half, 2 + half, 4 + half]
                kept.add(str(half), indices, pixels[indices])
        assert torch.equal(there.features().pooled, back.features().pooled)
        assert torch.allclose(there.features().pooled, judge(pixels).pooled, atol=1e-4)
        assert there.sha256_of_batches() == back.sha256_of_batches()


def test_a_set_is_measured_by_one_process_at_a_time(judge: CountingJudge, tmp_path: Path) -> None:
    with Work(tmp_path) as work, Work(tmp_path) as other:
        work.kept("samples", "set", judge)
        with pytest.raises(ValueError, match=r"another adm evaluate measures the same set; wait for it to end$"):
            other.kept("samples", "set", judge)
        other.kept("reference", "set", judge)


def test_thumbnails_are_of_every_image_and_small(judge: CountingJudge, tmp_path: Path) -> None:
    pixels = torch.full((2, 3, 128, 128), 7, dtype=torch.uint8)
    with Work(tmp_path, thumbnails=True) as work:
        kept = work.kept("samples", "set", judge)
        kept.add("0", [0, 1], pixels)
        found = kept.thumbnails()
        assert found is not None
        assert torch.equal(found, pixels[:, :, :64, :64])
