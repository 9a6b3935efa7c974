"""Storing an image with retries: which failures are waited for, and when an image is given up."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError

from jobs.contract.errors import UnavailableError
from jobs.storage.images import ROOT, ImageStore
from tests.jobs.samples import png
from tests.worker.conftest import Bench
from worker import store_retries
from worker.claim import Claim
from worker.inbox import Inbox
from worker.store_retries import RetryingStore, UnstorableError

put = obstore.put


class Calls:
    """Stands before the store: delays each put by `seconds`, and fails those whose key `fails` selects."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.seconds = 0.0
        self.fails: Callable[[str], bool] = lambda key: True

    def put(self, store: Any, key: str, data: bytes, **options: Any) -> Any:
        self.keys.append(key)
        time.sleep(self.seconds)
        if self.fails(key):
            raise GenericError("no answer")
        return put(store, key, data, **options)


@pytest.fixture
def claim(bench: Bench, inbox: Inbox) -> Claim:
    bench.submit()
    return bench.claim(inbox)[0]


def obstruct(folder: Path) -> Path:
    """A file where a folder has to be: nothing can be stored below it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")
    return folder


def test_image_that_the_store_never_takes_is_distinguished_from_an_unavailable_store(
    tmp_path: Path, claim: Claim
) -> None:
    obstruct(tmp_path / ROOT / claim.job_id)
    with pytest.raises(UnstorableError):
        RetryingStore(ImageStore(str(tmp_path))).put_with_retries(claim, 0, png(), lambda: None)


def test_trying_elsewhere_leaves_nothing(tmp_path: Path) -> None:
    assert ImageStore(str(tmp_path)).takes(png())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_store_that_stays_unavailable_is_reported_after_a_while(
    tmp_path: Path, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_retries, "PATIENCE_SECONDS", 0.2)
    store = ImageStore(str(tmp_path))
    obstruct(tmp_path / ROOT)
    with pytest.raises(UnavailableError):
        RetryingStore(store).put_with_retries(claim, 0, png(), lambda: None)


def test_image_that_has_waited_its_time_is_tried_once_and_still_reported_unstorable(
    tmp_path: Path, claim: Claim
) -> None:
    store, looked = ImageStore(str(tmp_path)), []
    obstacle = obstruct(tmp_path / ROOT)
    with pytest.raises(UnavailableError):
        RetryingStore(store).put_with_retries(
            claim, 0, png(), lambda: looked.append(1), waited=store_retries.PATIENCE_SECONDS
        )
    assert len(looked) == 1, "before it is tried elsewhere, and not before a second try"
    obstacle.unlink()
    obstruct(tmp_path / ROOT / claim.job_id)
    with pytest.raises(UnstorableError):
        RetryingStore(store).put_with_retries(claim, 0, png(), lambda: None, waited=store_retries.PATIENCE_SECONDS)


def test_store_that_comes_back_gets_its_image_and_the_lease_is_kept_meanwhile(tmp_path: Path, claim: Claim) -> None:
    store = ImageStore(str(tmp_path))
    obstacle = obstruct(tmp_path / ROOT)
    called = []

    def meanwhile() -> None:
        called.append(time.monotonic())
        if len(called) == 2:
            obstacle.unlink()

    image = RetryingStore(store).put_with_retries(claim, 0, png(), meanwhile)
    assert store.get(claim.job_id, image) == png()
    assert len(called) == 2


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(obstore, "put", calls.put)
    return calls


def test_image_that_has_waited_its_time_costs_a_store_that_just_failed_no_call(
    tmp_path: Path, claim: Claim, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RetryingStore(ImageStore(str(tmp_path)))

    def give_up(waited: float) -> int:
        before = len(calls.keys)
        with pytest.raises(UnavailableError):
            store.put_with_retries(claim, 0, png(), lambda: None, waited)
        return len(calls.keys) - before

    assert give_up(store_retries.PATIENCE_SECONDS) == 2, "the image, and its bytes elsewhere"
    assert [give_up(store_retries.PATIENCE_SECONDS) for _ in range(3)] == [0, 0, 0]
    calls.seconds = 0.1
    assert give_up(store_retries.PATIENCE_SECONDS - 0.05) == 1, "for its patience is used up by the first call"
    monkeypatch.setattr(store_retries, "MOMENT_SECONDS", 0.0)
    assert give_up(store_retries.PATIENCE_SECONDS) == 2, "after a while it is called again"


def test_image_that_has_waited_its_time_is_stored_once_the_store_has_taken_another(
    tmp_path: Path, claim: Claim, calls: Calls
) -> None:
    store = RetryingStore(ImageStore(str(tmp_path)))
    with pytest.raises(UnavailableError):
        store.put_with_retries(claim, 0, png(), lambda: None, store_retries.PATIENCE_SECONDS)
    calls.fails = lambda key: False
    store.put_with_retries(claim, 1, png(), lambda: None)
    assert store.put_with_retries(claim, 2, png(), lambda: None, store_retries.PATIENCE_SECONDS).index == 2
