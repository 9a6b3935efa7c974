"""Storing with patience: what is waited for, and what is given up."""

import time
from pathlib import Path

import pytest

from jobs.errors import UnavailableError
from jobs.images import ROOT, ImageStore
from tests.jobs.samples import png
from tests.worker.conftest import Bench
from worker import storing
from worker.inbox import Claim, Inbox
from worker.storing import UnstorableError, put_patiently


@pytest.fixture
def claim(bench: Bench, inbox: Inbox) -> Claim:
    bench.submit()
    return bench.claim(inbox)[0]


def obstruct(folder: Path) -> Path:
    """A file where a folder has to be: nothing can be stored below it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")
    return folder


def test_image_that_the_store_never_takes_is_told_from_a_store_that_is_away(tmp_path: Path, claim: Claim) -> None:
    obstruct(tmp_path / ROOT / claim.job_id)
    with pytest.raises(UnstorableError):
        put_patiently(ImageStore(str(tmp_path)), claim, 0, png(), lambda: None)


def test_trying_elsewhere_leaves_nothing(tmp_path: Path) -> None:
    assert ImageStore(str(tmp_path)).takes(png())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_store_that_stays_away_is_told_after_a_while(
    tmp_path: Path, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "PATIENCE_SECONDS", 0.2)
    store = ImageStore(str(tmp_path))
    obstruct(tmp_path / ROOT)
    with pytest.raises(UnavailableError):
        put_patiently(store, claim, 0, png(), lambda: None)


def test_image_that_has_waited_its_time_is_tried_once_and_told_unstorable_all_the_same(
    tmp_path: Path, claim: Claim
) -> None:
    store, looked = ImageStore(str(tmp_path)), []
    obstacle = obstruct(tmp_path / ROOT)
    with pytest.raises(UnavailableError):
        put_patiently(store, claim, 0, png(), lambda: looked.append(1), waited=storing.PATIENCE_SECONDS)
    assert len(looked) == 1, "before it is tried elsewhere, and not before a second try"
    obstacle.unlink()
    obstruct(tmp_path / ROOT / claim.job_id)
    with pytest.raises(UnstorableError):
        put_patiently(store, claim, 0, png(), lambda: None, waited=storing.PATIENCE_SECONDS)


def test_store_that_comes_back_gets_its_image_and_the_lease_is_kept_meanwhile(tmp_path: Path, claim: Claim) -> None:
    store = ImageStore(str(tmp_path))
    obstacle = obstruct(tmp_path / ROOT)
    called = []

    def meanwhile() -> None:
        called.append(time.monotonic())
        if len(called) == 2:
            obstacle.unlink()

    image = put_patiently(store, claim, 0, png(), meanwhile)
    assert store.get(claim.job_id, image) == png()
    assert len(called) == 2
