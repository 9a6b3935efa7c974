"""Every check of the audit can fail: each gets a state in which one thing is wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.chaos import audit
from tests.chaos.audit import Seen
from tests.chaos.follow import Followed
from tests.chaos.load import Ask

IMAGE = {"index": 0, "sha256": "a", "url": "/v1/jobs/j/images/0"}
COMPLETED = Seen(
    "j",
    {"status": "completed", "images": [IMAGE], "numerics": "n", "results": None, "error": None},
    (("queued", {}), ("started", {}), ("image", IMAGE), ("completed", {})),
    ("a",),
)
FAILED = replace(COMPLETED, job=COMPLETED.job | {"status": "failed", "error": {"kind": "step-failed"}})
ASK = Ask(0, {}, "key", "nothing", 0, ids={"j"})


def changed(seen: Seen, **fields: Any) -> Seen:
    return replace(seen, job=seen.job | fields)


def test_sound_world_gives_no_complaint(redis: Redis, tmp_path: Path) -> None:
    assert audit.ended_once(COMPLETED) == []
    assert audit.images_are_right(COMPLETED, COMPLETED) == []
    assert audit.fate_is_right(ASK, COMPLETED) == []
    assert audit.fate_is_right(replace(ASK, deleted=True), None) == []
    assert audit.fate_is_right(replace(ASK, fate="failed", failure="step-failed"), FAILED) == []
    whole = Followed("j", [("1-0", kind) for kind, _ in COMPLETED.events])
    assert audit.stream_was_whole(whole, COMPLETED) == []
    assert audit.nobody_else([ASK], 1, ["p"], ["j", "p", "unanswered"]) == []
    redis.hset("adm:work:demo", "normal:5:base", 0)
    redis.set("adm:worker:worker-0", "{}")
    assert audit.queue_is_empty(redis) == []
    redis.zadd("adm:jobs:completed", {"1-j": 0})
    assert audit.indexes_agree(redis, {"j": "completed"}) == []
    redis.delete("adm:jobs:completed")
    assert audit.nothing_left(redis, tmp_path) == []
    assert audit.no_server_errors('{"status": 503}\n') == []


@pytest.mark.parametrize(
    "seen",
    [
        changed(COMPLETED, status="in_progress"),
        changed(COMPLETED, status="cancelled"),
        replace(COMPLETED, events=(*COMPLETED.events, ("completed", {}))),
        replace(COMPLETED, events=(*COMPLETED.events, ("queued", {}))),
        replace(COMPLETED, events=COMPLETED.events[:-1]),
    ],
    ids=["not ended", "other end", "two ends", "goes on", "no end"],
)
def test_job_that_did_not_end_once_is_reported(seen: Seen) -> None:
    assert audit.ended_once(seen)


@pytest.mark.parametrize(
    "seen",
    [
        replace(COMPLETED, bytes_sha256=("b",)),
        replace(COMPLETED, bytes_sha256=()),
        replace(COMPLETED, events=(("image", IMAGE | {"sha256": "b"}), ("completed", {}))),
        replace(COMPLETED, events=(("completed", {}),)),
        changed(COMPLETED, numerics="other"),
        changed(COMPLETED, results={"scores": []}),
        replace(
            changed(COMPLETED, images=[IMAGE | {"sha256": "b"}]),
            bytes_sha256=("b",),
            events=(("image", IMAGE | {"sha256": "b"}), ("completed", {})),
        ),
    ],
    ids=["other bytes", "no bytes", "other event", "no event", "other numerics", "other results", "other image"],
)
def test_wrong_images_are_reported(seen: Seen) -> None:
    assert audit.images_are_right(seen, COMPLETED)


@pytest.mark.parametrize(
    ("ask", "seen"),
    [
        (ASK, None),
        (ASK, FAILED),
        (ASK, changed(COMPLETED, status="cancelled")),
        (replace(ASK, ids={"j", "k"}), COMPLETED),
        (replace(ASK, deleted=True), COMPLETED),
        (replace(ASK, fate="failed", failure="store-failed"), FAILED),
        (replace(ASK, fate="expired"), COMPLETED),
    ],
    ids=["lost", "failed", "cancelled unasked", "doubled", "undead", "other failure", "not expired"],
)
def test_wrong_fate_is_reported(ask: Ask, seen: Seen | None) -> None:
    assert audit.fate_is_right(ask, seen)


@pytest.mark.parametrize("kinds", [["queued"], ["queued", "started", "started", "image", "completed"]])
def test_stream_with_a_gap_or_an_echo_is_reported(kinds: list[str]) -> None:
    assert audit.stream_was_whole(Followed("j", [("1-0", kind) for kind in kinds]), COMPLETED)


def test_unknown_job_is_reported() -> None:
    assert audit.nobody_else([ASK], 0, [], ["j", "k"])


@pytest.mark.parametrize(
    "command",
    [
        ("ZADD", "adm:leases", 1, "j:token"),
        ("ZADD", "adm:expiring", 1, "j"),
        ("ZADD", "rq:wip:adm:demo:normal", 1, "j:token"),
        ("ZADD", "rq:executions:j", 1, "token"),
        ("SADD", "rq:worker:worker-0:executions", "j:token"),
        ("SET", "adm:progress:j", "{}"),
        ("HSET", "adm:work:demo", "running:5:base", 3),
    ],
    ids=lambda command: str(command[1]),
)
def test_entry_that_outlives_all_jobs_is_reported(redis: Redis, command: tuple[Any, ...]) -> None:
    redis.execute_command(*command)  # type: ignore[no-untyped-call] # redis-py leaves it untyped
    assert audit.queue_is_empty(redis)


def test_id_that_stays_in_a_queue_is_reported(redis: Redis) -> None:
    redis.sadd("rq:queues", "rq:queue:adm:demo:normal")
    redis.rpush("rq:queue:adm:demo:normal", "nobody")
    assert audit.queue_is_empty(redis)


def test_wrong_index_is_reported(redis: Redis) -> None:
    redis.zadd("adm:jobs:queued", {"1-j": 0})
    assert len(audit.indexes_agree(redis, {"j": "completed"})) == 2


@pytest.mark.parametrize(
    "key", ["rq:job:j", "rq:results:j", "adm:events:j", "adm:jobs", "adm:jobs:failed", "adm:ended"]
)
def test_key_of_a_deleted_job_is_reported(redis: Redis, tmp_path: Path, key: str) -> None:
    redis.set(key, "")
    assert audit.nothing_left(redis, tmp_path)


def test_file_of_a_deleted_job_is_reported(redis: Redis, tmp_path: Path) -> None:
    (tmp_path / "jobs" / "j" / "token").mkdir(parents=True)
    assert audit.nothing_left(redis, tmp_path) == []
    (tmp_path / "jobs" / "j" / "token" / "0.png#1").write_text("half")
    assert audit.nothing_left(redis, tmp_path)


def test_answer_500_is_reported() -> None:
    assert audit.no_server_errors('{"event": "request", "status": 500}\n')
