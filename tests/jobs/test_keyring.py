"""Keys on a real Redis: made, judged, revoked, rotated, two at a time, and damaged ones."""

import hmac
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from jobs.callers.keyring import Keyring, KeyStore, read_keyring
from jobs.contract.caller import ANONYMOUS, KEY, Caller, Role
from jobs.contract.errors import KeyringError
from jobs.redis import keys

pytestmark = pytest.mark.redis


def ring(redis: Redis) -> Keyring:
    return read_keyring(redis.hgetall(keys.API_KEYS))  # type: ignore[arg-type] # typed for async clients too


def test_key_is_its_callers_and_no_other_is(redis: Redis) -> None:
    store = KeyStore(redis)
    ann, bob = store.create("ann", Role.USER, 2.0), store.create("bob", Role.OPERATOR)
    assert ring(redis).caller_of(ann.key) == Caller(ann.record.id, Role.USER, 2.0)
    assert ring(redis).caller_of(bob.key) == Caller(bob.record.id, Role.OPERATOR)
    mixed = ann.key[:17] + bob.key[17:]  # the id of one, the secret of the other
    assert KEY.fullmatch(mixed)
    for wrong in (mixed, ann.key[:-1], f"{ann.key}a", ann.key.upper(), "", "adm_", ann.record.sha256):
        assert ring(redis).caller_of(wrong) is None, wrong


def test_judging_any_key_takes_one_comparison_in_constant_time(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing then depends on neither the key nor its caller: `==`, or an early return, makes no such comparison."""
    store = KeyStore(redis)
    ann, bob = store.create("ann", Role.USER), store.create("bob", Role.USER)
    store.revoke("bob")
    shown = {
        "right": ann.key,
        "wrong": ann.key[:17] + bob.key[17:],
        "of nobody": f"adm_{'0' * 12}_{ann.key[17:]}",
        "revoked": bob.key,
        "of another form": "s3cret",
    }
    found, compare, compared = ring(redis), hmac.compare_digest, list[tuple[str, str]]()

    def spy(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    for name, key in shown.items():
        compared.clear()
        assert (found.caller_of(key) is not None) is (name == "right")
        ((one, other),) = compared
        assert len(one) == len(other) == 64, name


@pytest.mark.slow
@given(st.text(max_size=200))
def test_any_text_is_judged_and_opens_nothing(text: str) -> None:
    assert Keyring({}, exist=True).caller_of(text) is None


def test_redis_contains_no_key(redis: Redis) -> None:
    made = KeyStore(redis).create("ann", Role.USER)
    redis.config_set("rdbcompression", "no")  # or a dump would hide its contents
    kept = b"".join(redis.dump(each) or b"" for each in redis.scan_iter("*"))
    assert made.key[17:].encode() not in kept
    assert made.record.sha256.encode() in b"".join(redis.hvals(keys.API_KEYS))  # type: ignore[arg-type] # as above


def test_revoked_key_opens_nothing_and_keys_stay_needed(redis: Redis) -> None:
    store = KeyStore(redis)
    made = store.create("ann", Role.USER)
    store.revoke("ann")
    assert ring(redis).caller_of(made.key) is None
    assert ring(redis).exist
    assert len(ring(redis)) == 0
    with pytest.raises(KeyringError, match="no such key"):
        store.revoke("ann")


def test_rotated_key_is_the_same_callers(redis: Redis) -> None:
    store = KeyStore(redis)
    old = store.create("ann", Role.USER)
    new = store.rotate(old.record.id)
    assert ring(redis).caller_of(old.key) is None
    assert ring(redis).caller_of(new.key) == old.record.caller


def test_name_is_one_callers_until_it_is_revoked(redis: Redis) -> None:
    store = KeyStore(redis)
    first = store.create("ann", Role.USER)
    with pytest.raises(KeyringError, match="named 'ann'"):
        store.create("ann", Role.USER)
    store.revoke(first.record.id)
    assert store.create("ann", Role.USER).record.id != first.record.id


@pytest.mark.parametrize("name", ["", " a", "a\nb", "a" * 65, "<b>", "ä"])
def test_name_that_no_log_or_page_should_show_is_refused(redis: Redis, name: str) -> None:
    with pytest.raises(KeyringError, match="--name"):
        KeyStore(redis).create(name, Role.USER)
    assert not redis.exists(keys.API_KEYS)


def test_keys_made_at_once_are_all_kept(redis: Redis) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda n: KeyStore(redis).create(f"caller {n}", Role.USER), range(8)))
    found = ring(redis)
    assert [found.caller_of(each.key) for each in made] == [each.record.caller for each in made]


def test_of_two_that_rotate_at_once_one_key_counts(redis: Redis) -> None:
    store = KeyStore(redis)
    store.create("ann", Role.USER)
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: KeyStore(redis).rotate("ann"), range(2)))
    assert sum(ring(redis).caller_of(each.key) is not None for each in made) == 1


def test_damaged_record_opens_nothing_and_leaves_the_others(redis: Redis) -> None:
    made = KeyStore(redis).create("ann", Role.USER)
    redis.hset(keys.API_KEYS, "0" * 12, "{}")
    assert ring(redis).caller_of(made.key) == made.record.caller
    redis.delete(keys.API_KEYS)
    redis.hset(keys.API_KEYS, "0" * 12, "garbage")
    assert ring(redis).exist
    assert read_keyring(None).exist


@pytest.mark.parametrize(
    ("caller", "owner", "is_shown"),
    [
        (ANONYMOUS, "", True),
        (ANONYMOUS, "a" * 12, True),
        (Caller("a" * 12, Role.USER), "a" * 12, True),
        (Caller("a" * 12, Role.USER), "b" * 12, False),
        (Caller("a" * 12, Role.USER), "", False),
        (Caller("a" * 12, Role.OPERATOR), "b" * 12, True),
        (Caller("a" * 12, Role.OPERATOR), "", True),
        (Caller("a" * 12, Role.METRICS), "a" * 12, False),
    ],
)
def test_users_see_their_own_and_operators_everything(caller: Caller, owner: str, is_shown: bool) -> None:
    assert caller.may_see(owner) is is_shown


def test_key_has_256_random_bits_and_names_its_caller(redis: Redis) -> None:
    made = KeyStore(redis).create("ann", Role.USER)
    assert re.fullmatch(rf"adm_{made.record.id}_[A-Za-z0-9_-]{{43}}", made.key)
