"""Limits on the uploaded pictures that are kept: exact whatever happens at once, at the same cost for any number."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import cast

import pytest
from redis import Redis

from jobs.contract.caller import ANONYMOUS, Caller, Role
from jobs.contract.errors import ErrorKind, RefusedError, UnavailableError
from jobs.redis import keys
from jobs.settings import Settings
from jobs.storage.file_counts import LEAST_COUNTED_BYTES, FileCounts, FileLimits
from jobs.storage.files import ROOT, FileStore
from jobs.storage.store import ObjectStore
from pictures.reduction import Picture
from tests.jobs.samples import png

ANN, BOB = (Caller(name, Role.USER) for name in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"))
LIMITS = FileLimits(all=10**12, own=10**12)


def add(files: FileStore, name: str, caller: Caller = ANONYMOUS, num_bytes: int = 1) -> bool:
    """Add a file; False if it is refused because too much is kept."""
    try:
        files.add(name, 1, Picture(bytes(num_bytes), 2, 2), 512, caller)
    except RefusedError as error:
        if error.kind is not ErrorKind.FILES_FULL:
            raise
        return False
    return True


def limited(redis: Redis, settings: Settings, store: ObjectStore, *, all: int = 100, own: int = 100) -> FileStore:
    """Files of which so many of the least size may be kept."""
    limits = {"max_files_bytes": all * LEAST_COUNTED_BYTES, "quota_files_bytes": own * LEAST_COUNTED_BYTES}
    return FileStore(redis, settings.model_copy(update=limits), store)


def sums(redis: Redis) -> dict[str, int]:
    found = cast(dict[bytes, bytes], redis.hgetall(keys.FILE_SUMS))
    return {name.decode(): int(value) // LEAST_COUNTED_BYTES for name, value in found.items()}


def pass_time(redis: Redis, file_id: str) -> None:
    """Do as if the lifetime of a file were over."""
    redis.delete(keys.file(file_id))
    redis.zadd(keys.FILE_EXPIRY, {file_id: 0}, xx=True)


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return ObjectStore(settings.store_address)


@pytest.mark.parametrize(("all_", "own"), [(3, 100), (100, 3)])
def test_uploads_at_the_same_moment_do_not_pass_a_limit_together(
    redis: Redis, settings: Settings, all_: int, own: int
) -> None:
    num_uploads = 8
    stored = Barrier(num_uploads)

    class Slow(ObjectStore):
        """A store that has all uploads before any of them is published."""

        def put(self, key: str, data: bytes) -> None:
            super().put(key, data)
            stored.wait(60)

    files = limited(redis, settings, Slow(settings.store_address), all=all_, own=own)
    with ThreadPoolExecutor(num_uploads) as pool:
        kept = list(pool.map(lambda number: add(files, f"{number}", ANN), range(num_uploads)))
    assert sum(kept) == 3
    assert sums(redis) == {ANN.id: 3, keys.ALL_CALLERS: 3}
    assert len(list(ObjectStore(settings.store_address).list(ROOT))) == 3, "what was refused is not kept"


def test_upload_that_fails_halfway_counts_for_nothing(redis: Redis, settings: Settings, store: ObjectStore) -> None:
    files = limited(redis, settings, store, own=1)
    in_the_way = Path(settings.store_address) / ROOT
    in_the_way.write_text("")
    with pytest.raises(UnavailableError):
        add(files, "first", ANN)
    assert sums(redis) == {}
    in_the_way.unlink()
    assert add(files, "second", ANN)


def test_sums_follow_uploads_repetitions_removals_and_expiry(
    redis: Redis, settings: Settings, store: ObjectStore
) -> None:
    files = limited(redis, settings, store, own=4)
    assert add(files, "a", ANN, 2 * LEAST_COUNTED_BYTES)
    assert all(add(files, name, ANN) for name in ("b", "c"))
    assert add(files, "a", BOB)
    assert sums(redis) == {ANN.id: 4, BOB.id: 1, keys.ALL_CALLERS: 5}
    assert not add(files, "d", ANN)
    assert add(files, "a", ANN), "the same bytes are counted once, as they are stored now"
    assert add(files, "d", ANN)
    assert sums(redis) == {ANN.id: 4, BOB.id: 1, keys.ALL_CALLERS: 5}
    ids = [each.decode() for each in cast(list[bytes], redis.hkeys(keys.FILE_BYTES))]
    of_ann = [each for each in ids if redis.hget(keys.FILE_CALLERS, each) == ANN.id.encode()]
    files.delete(of_ann[0], ANN)
    pass_time(redis, of_ann[1])
    assert [add(files, name, ANN) for name in ("e", "f", "g")] == [True, True, False]
    assert sums(redis) == {ANN.id: 4, BOB.id: 1, keys.ALL_CALLERS: 5}


def test_file_that_is_used_again_is_counted_until_it_expires(
    redis: Redis, settings: Settings, store: ObjectStore
) -> None:
    files = limited(redis, settings, store, all=1)
    file_id = files.add("a", 1, Picture(png(), 2, 2), 512, ANONYMOUS).id
    redis.zadd(keys.FILE_EXPIRY, {file_id: 0})  # the time of its upload is over, but its record was extended
    assert not add(files, "b")
    pass_time(redis, file_id)
    assert add(files, "b")


def test_sums_are_made_anew_after_an_upgrade_and_by_the_upkeep(
    redis: Redis, settings: Settings, store: ObjectStore
) -> None:
    files = limited(redis, settings, store, all=2)
    assert add(files, "a", ANN)
    redis.delete(keys.FILE_SUMS, keys.FILE_EXPIRY)  # as a service of an earlier version leaves them
    assert add(files, "b", ANN)
    assert not add(files, "c", ANN)
    redis.hset(keys.FILE_SUMS, keys.ALL_CALLERS, 0)
    lost = cast(list[bytes], redis.hkeys(keys.FILE_BYTES))[0]
    redis.delete(keys.file(lost.decode()))
    files.remove_strays()
    assert sums(redis) == {ANN.id: 1, keys.ALL_CALLERS: 1}


def test_upload_reads_no_more_for_a_thousand_files_than_for_one(redis: Redis) -> None:
    counts = FileCounts(redis)

    def commands(number: int) -> dict[str, int]:
        """The commands that Redis runs for one upload, scripts' own included."""
        redis.config_resetstat()
        counts.publish(f"file-{number}", ANN.id, 1, LIMITS, "{}", 60)
        found = redis.info("commandstats")
        return {name: value["calls"] for name, value in found.items()}

    counts.publish("file-0", ANN.id, 1, LIMITS, "{}", 60)
    first = commands(1)
    for number in range(2, 1000):
        counts.publish(f"file-{number}", ANN.id, 1, LIMITS, "{}", 60)
    assert commands(1000) == first
    assert not {f"cmdstat_{each}" for each in ("hgetall", "hkeys", "hvals", "hlen")} & first.keys()


def test_many_files_that_have_expired_are_forgotten_by_one_upload(redis: Redis) -> None:
    counts, limits = FileCounts(redis), FileLimits(all=700 * LEAST_COUNTED_BYTES, own=10**12)
    for number in range(700):
        counts.publish(f"file-{number}", ANN.id, 1, limits, "{}", 60)
    with pytest.raises(RefusedError):
        counts.check("file-new", ANN.id, 1, limits)
    for number in range(600):
        redis.delete(keys.file(f"file-{number}"))
    redis.zadd(keys.FILE_EXPIRY, {f"file-{number}": 0 for number in range(700)})
    counts.publish("file-new", ANN.id, 600 * LEAST_COUNTED_BYTES, limits, "{}", 60)
    assert sums(redis) == {ANN.id: 700, keys.ALL_CALLERS: 700}
