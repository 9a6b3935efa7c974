import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from jobs.callers.quota_windows import Window
from jobs.redis import keys
from jobs.settings import Settings
from standalone.redis_checks import COMMANDS, check_redis, judge_clock
from tests.conftest import RedisServer
from tests.jobs.desk import ANN, Desk
from vocabulary.doctor_finding import Finding

LEFT_OUT = {"hello", "client", "config"}  # the connection's own, and RQ's that it does without
CHECKED_APART = {"set", "watch", "unwatch", "multi", "exec", "subscribe", "unsubscribe"}
PASSWORD = "unguessable"


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {each.check: each for each in findings}


@contextmanager
def configured(redis: Redis, name: str, value: str) -> Iterator[None]:
    """The shared server with one option changed, for as long as the block lasts."""
    before = str(redis.config_get(name)[name])
    redis.config_set(name, value)
    try:
        yield
    finally:
        redis.config_set(name, before)


@pytest.fixture
def limited(redis: Redis, redis_server: RedisServer, settings: Settings) -> Iterator[tuple[Redis, Settings]]:
    """A user who may do all that the programs need and nothing else, with settings that use it."""
    words = {command.split()[0].lower() for command in COMMANDS} | CHECKED_APART
    rights = [*(f"+{each}" for each in sorted(words)), "~adm:*", "~rq:*", "&adm:*", "&rq:*"]
    redis.execute_command("ACL", "SETUSER", "ours", "reset", "on", f">{PASSWORD}", *rights)  # type: ignore[no-untyped-call] # redis-py leaves it untyped
    address = f"unix://ours:{PASSWORD}@{redis_server.socket}"
    yield redis, settings.model_copy(update={"redis_url": address})
    redis.acl_deluser("ours")


def change(redis: Redis, *rights: str) -> None:
    redis.execute_command("ACL", "SETUSER", "ours", *rights)  # type: ignore[no-untyped-call] # redis-py leaves it untyped


def test_redis_of_ours_is_found_in_order_and_left_without_a_trace(redis: Redis, settings: Settings) -> None:
    found = by_check(check_redis(settings))
    assert {name: each.verdict for name, each in found.items()} == dict.fromkeys(
        ("redis", "redis rights", "callers", "clock"), "ok"
    )
    assert "noeviction, append-only file on" in found["redis"].text
    assert redis.keys() == []


def test_redis_that_forgets_at_a_crash_is_a_warning(redis: Redis, settings: Settings) -> None:
    with configured(redis, "appendonly", "no"):
        found = by_check(check_redis(settings))["redis"]
    assert found.verdict == "warning"
    assert "set its appendonly to yes" in found.text


def test_redis_that_evicts_keys_is_a_fault(redis: Redis, settings: Settings) -> None:
    with configured(redis, "maxmemory-policy", "allkeys-lru"):
        found = by_check(check_redis(settings))["redis"]
    assert found.verdict == "fault"
    assert "must be noeviction" in found.text


def test_replica_which_takes_no_writes_is_a_fault(redis: Redis, settings: Settings) -> None:
    redis.replicaof("127.0.0.1", "1")  # nobody listens there, so that it keeps trying
    try:
        found = by_check(check_redis(settings))["redis"]
    finally:
        redis.replicaof("NO", "ONE")
    assert found.verdict == "fault"
    assert "takes no writes" in found.text


def test_user_with_the_rights_that_the_doctor_names_passes(limited: tuple[Redis, Settings]) -> None:
    redis, settings = limited
    assert {each.verdict for each in check_redis(settings)} == {"ok"}
    assert redis.keys() == []


@pytest.mark.parametrize(
    ("rights", "message"),
    [
        (["-hincrbyfloat", "-zscan"], "not permitted: HINCRBYFLOAT, ZSCAN; "),
        (["-exec"], "not permitted: EXEC; "),
        (["-ping", "-info"], "not permitted: INFO, PING; "),
        (["resetkeys", "~adm:*"], "not permitted: keys; give Redis' user ~adm:* &adm:* ~rq:* &rq:* "),
        (["resetchannels"], "not permitted: channels; "),
        (["nocommands"], "not permitted: DEL, EVAL, EVALSHA, "),
    ],
    ids=["two commands", "transactions", "connection", "keys of RQ", "channels", "all commands"],
)
def test_missing_rights_are_a_fault_that_names_them(
    limited: tuple[Redis, Settings], rights: list[str], message: str
) -> None:
    redis, settings = limited
    change(redis, *rights)
    (found,) = check_redis(settings)
    assert (found.check, found.verdict) == ("redis rights", "fault")
    assert found.text.startswith(message)


def test_commands_of_a_job_a_listing_and_a_quota_are_all_among_those_tried(redis: Redis, settings: Settings) -> None:
    redis.config_resetstat()
    desk = Desk(redis, settings)
    (job_id,) = desk.post(ANN)
    desk.queue.cancel(job_id, caller=ANN)
    assert Window(redis, "posts", 10).take(ANN.id, 1)
    used = {each.removeprefix("cmdstat_").partition("|")[0] for each in redis.info("commandstats")}
    tried = {command.split()[0].lower() for command in COMMANDS} | CHECKED_APART
    assert len(used) > 20
    assert used <= tried | LEFT_OUT


def test_wrong_password_is_a_fault_that_does_not_repeat_it(limited: tuple[Redis, Settings]) -> None:
    _, settings = limited
    wrong = settings.model_copy(update={"redis_url": str(settings.redis_url).replace(PASSWORD, "hunter2")})
    (found,) = check_redis(wrong)
    assert found.verdict == "fault"
    assert "ADM_REDIS_URL" in found.text
    assert "hunter2" not in found.text


def test_redis_that_is_not_there_is_a_fault_if_it_was_named_and_none_if_adm_up_starts_it(tmp_path: Path) -> None:
    (named,) = check_redis(Settings(data=tmp_path, redis_url=f"unix://{tmp_path}/none.sock"))
    (embedded,) = check_redis(Settings(data=tmp_path))
    assert (named.verdict, embedded.verdict) == ("fault", "ok")
    assert embedded.text == "the embedded server is not running; adm up starts it"


def test_service_beyond_loopback_without_keys_is_a_fault(redis: Redis, settings: Settings) -> None:
    wide = settings.model_copy(update={"host": "0.0.0.0"})
    assert by_check(check_redis(wide))["callers"].verdict == "fault"
    redis.hset(keys.API_KEYS, "caller", "record")
    assert by_check(check_redis(wide))["callers"].verdict == "ok"


@pytest.mark.parametrize(
    ("ahead_seconds", "verdict", "message"),
    [(0.2, "ok", "within 5 s"), (90.0, "warning", "90.0 s ahead of"), (-3600.0, "warning", "3600.0 s behind")],
)
def test_clocks_that_differ_are_a_warning(ahead_seconds: float, verdict: str, message: str) -> None:
    found = judge_clock(ahead_seconds)
    assert found.verdict == verdict
    assert re.search(message, found.text)
