from ipaddress import ip_address

import pytest
from redis import Redis

from jobs.queue.webhook_targets import WebhookTargets
from jobs.queue.webhooks import LEASE_SECONDS, RETRY_SECONDS, Delivery, Webhooks, enqueue
from jobs.redis import keys
from jobs.settings import Settings
from tests.conftest import running_redis

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def queued(redis: Redis, member: str = "m", due_at: float = 0) -> None:
    with redis.pipeline() as pipe:
        enqueue(pipe, member, "j", "completed", "http://a.example/", due_at)
        pipe.execute()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.10", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "100.100.100.200", "168.63.129.16", "224.0.0.1", "255.255.255.255", "198.18.0.1", "::", "::1", "::7f00:1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2002:a00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe", "fe80::1", "fc00::1", "fd00:ec2::254",
        "ff02::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_webhooks_go_to_no_address_that_only_this_machine_or_its_network_can_reach(address: str) -> None:
    assert not WebhookTargets([]).allows(ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_webhooks_go_to_public_addresses(address: str) -> None:
    assert WebhookTargets([]).allows(ip_address(address))


def test_webhooks_go_to_networks_that_a_setting_names_and_to_no_others() -> None:
    targets = WebhookTargets(["10.1.0.0/16", "fd12::/16"])
    allowed = {
        each: targets.allows(ip_address(each)) for each in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1", "10.2.0.1")
    }
    assert allowed == {"10.1.2.3": True, "::ffff:10.1.2.3": True, "fd12::1": True, "10.2.0.1": False}


def test_delivery_that_is_due_is_claimed_by_one_and_again_when_its_lease_is_over(redis: Redis) -> None:
    queued(redis)
    first, second = Webhooks(redis), Webhooks(redis)
    (claimed,) = first.claim()
    assert (claimed.type, claimed.url, claimed.attempts) == ("job.completed", "http://a.example/", 0)
    assert second.claim() == []
    assert redis.zscore(keys.WEBHOOKS, claimed.id) == pytest.approx(first.now() + LEASE_SECONDS, abs=10)
    redis.zadd(keys.WEBHOOKS, {claimed.id: 0})  # the sender died
    assert second.claim() == [claimed]


def test_deliveries_and_dead_letters_outlive_redis() -> None:
    with running_redis() as server:
        with server.client() as redis:
            queued(redis, "pending")
            queued(redis, "dead")
            webhooks = Webhooks(redis)
            dead = next(each for each in webhooks.pending() if each.id == "msg_dead")
            webhooks.failed(dead, "gone", for_good=True)
        server.stop()
        server.start()
        with server.client() as redis:
            webhooks = Webhooks(redis)
            assert [each.id for each in webhooks.claim()] == ["msg_pending"]
            assert [(each.id, each.error) for each in webhooks.dead()] == [("msg_dead", "gone")]


def test_delivery_that_is_not_due_waits(redis: Redis) -> None:
    webhooks = Webhooks(redis)
    queued(redis, due_at=webhooks.now() + 100)
    assert webhooks.claim() == []
    assert len(webhooks.pending()) == 1


def attempt(redis: Redis, webhooks: Webhooks) -> Delivery:
    (delivery,) = webhooks.pending()
    redis.zadd(keys.WEBHOOKS, {delivery.id: 0})
    (delivery,) = webhooks.claim()
    return delivery


def test_failed_delivery_is_tried_again_later_each_time_and_given_up_after_a_day(redis: Redis) -> None:
    queued(redis)
    webhooks = Webhooks(redis)
    for number, seconds in enumerate(RETRY_SECONDS):
        delivery = attempt(redis, webhooks)
        assert delivery.attempts == number
        assert webhooks.failed(delivery, "no answer")
        assert redis.zscore(keys.WEBHOOKS, delivery.id) == pytest.approx(webhooks.now() + seconds, abs=2)
    assert not webhooks.failed(attempt(redis, webhooks), "no answer")
    assert (webhooks.counts(), webhooks.dead()[0].error) == ((0, 1), "no answer")
    assert sum(RETRY_SECONDS) > 86400


def test_receiver_may_ask_for_a_later_attempt_but_for_no_earlier_one(redis: Redis) -> None:
    queued(redis)
    webhooks = Webhooks(redis)
    for asked, seconds in ((1000, 1000), (1, RETRY_SECONDS[1])):
        delivery = attempt(redis, webhooks)
        webhooks.failed(delivery, "answers 503", after_seconds=asked)
        assert redis.zscore(keys.WEBHOOKS, delivery.id) == pytest.approx(webhooks.now() + seconds, abs=2)


def test_dead_letter_is_tried_again_when_somebody_asks_for_it(redis: Redis) -> None:
    queued(redis)
    webhooks = Webhooks(redis)
    delivery = attempt(redis, webhooks)
    webhooks.failed(delivery, "gone", for_good=True)
    assert webhooks.revive([delivery.id, "msg_unknown"]) == [delivery.id]
    assert webhooks.claim()[0].attempts == 0
    assert webhooks.counts() == (1, 0)


def test_what_is_no_delivery_is_left_out_and_does_not_stay(redis: Redis) -> None:
    redis.zadd(keys.WEBHOOKS, {b"msg_expired": 0, b"\xff": 0})
    redis.hset(keys.webhook("msg_damaged"), mapping={"url": b"\xff"})
    redis.zadd(keys.WEBHOOKS, {"msg_damaged": 0})
    webhooks = Webhooks(redis)
    assert webhooks.claim() == []
    assert webhooks.counts() == (0, 0)


@pytest.mark.parametrize(
    "secret", ["secret", "whsec_", "whsec_c2hvcnQ=", "whsec_???", f"{SECRET},x", "whsec_" + "A" * 100]
)
def test_secret_that_is_none_stops_the_program(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        Settings(webhook_secret=secret)  # type: ignore[arg-type] # as the environment has it


def test_secret_is_masked_where_settings_are_printed() -> None:
    settings = Settings(webhook_secret=SECRET)  # type: ignore[arg-type] # as the environment has it
    assert SECRET not in str(settings.sources()) + repr(settings)
    assert len(settings.webhook_keys[0]) == 24


def test_caller_is_charged_for_pending_deliveries_alone(redis: Redis) -> None:
    """A service of an earlier version ends a delivery and leaves the caller's count; a revived one counts again."""
    webhooks, own = Webhooks(redis), keys.webhooks_of("ann")
    with redis.pipeline() as pipe:
        for member in ("ended", "pending", "dead"):
            enqueue(pipe, member, "j", "completed", "http://a.example/", webhooks.now(), "ann")
        pipe.execute()
    redis.zrem(keys.WEBHOOKS, "msg_ended")
    (dead,) = (each for each in webhooks.claim() if each.id == "msg_dead")
    webhooks.failed(dead, "refused", for_good=True)
    webhooks.recount()
    assert redis.zrange(own, 0, -1) == [b"msg_pending"]
    assert redis.ttl(own) > 0
    webhooks.revive(["msg_dead"])
    assert set(redis.zrange(own, 0, -1)) == {b"msg_pending", b"msg_dead"}
