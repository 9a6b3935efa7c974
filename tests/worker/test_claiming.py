"""A worker without room claims only jobs that would run at once."""

from collections.abc import Mapping

import pytest

from tests.worker.conftest import Bench, OpenInbox
from vocabulary.priorities import PRIORITY_RATIO, Priority
from worker.claim import Submit
from worker.claiming import LOOK_AHEAD, priority_of_next
from worker.inbox import Inbox

pytestmark = pytest.mark.redis


def short(pipeline: str, priority: Priority, work: Mapping[str, int]) -> bool:
    return work["base"] <= 10


def taken(inbox: Inbox, *, room: int = 0, spare: int = 8) -> list[str]:
    commands = inbox.poll(room=room, spare=spare, would_run=short, wait_seconds=0)
    return [each.claim.job_id for each in commands if isinstance(each, Submit)]


def test_job_that_would_run_at_once_may_overtake_those_that_wait_for_room(bench: Bench, inbox: Inbox) -> None:
    for _ in range(3):
        bench.submit(steps=250, n=4)
    quick = bench.submit(steps=10)
    assert taken(inbox) == [quick]


def test_job_may_overtake_one_that_does_not_fit(bench: Bench, inbox: Inbox) -> None:
    first, _, quick = bench.submit(n=6), bench.submit(n=4), bench.submit(steps=5)
    assert taken(inbox, room=8) == [first, quick]


def test_nothing_may_overtake_a_job_that_waits_to_run_alone(bench: Bench, open_inbox: OpenInbox) -> None:
    suspect = bench.submit()
    for _ in range(2):
        bench.claim(open_inbox("cpu-7"))
    inbox = open_inbox("cpu-7")
    bench.submit(priority="high")
    (beside,) = bench.claim(inbox, room=1)
    bench.submit(steps=5)
    assert taken(inbox, room=7) == []
    bench.finish(inbox, beside)
    assert taken(inbox, room=8) == [suspect]


def test_spare_room_is_not_exceeded(bench: Bench, inbox: Inbox) -> None:
    ids = [bench.submit(steps=1, n=3) for _ in range(4)]
    assert taken(inbox, spare=7) == ids[:2]


def test_high_priority_overtakes_first(bench: Bench, inbox: Inbox) -> None:
    low, high = (bench.submit(steps=5, priority=priority) for priority in ("low", "high"))
    assert taken(inbox) == [high, low]


def test_look_ahead_has_an_end(bench: Bench, inbox: Inbox) -> None:
    for _ in range(LOOK_AHEAD):
        bench.submit(steps=250)
    bench.submit(steps=5)
    for _ in range(LOOK_AHEAD):
        bench.submit(steps=250)
    assert taken(inbox) == []
    newest = bench.submit(steps=5)
    assert taken(inbox) == [newest]


def test_queue_is_looked_through_again_when_a_job_came_or_ended(bench: Bench, inbox: Inbox) -> None:
    bench.submit()
    (claim,) = bench.claim(inbox)
    bench.submit(steps=250)
    assert taken(inbox) == []
    quick = bench.submit(steps=5)
    assert taken(inbox) == [quick]
    bench.submit(steps=4)
    assert taken(inbox, spare=0) == []
    bench.finish(inbox, claim)
    assert len(taken(inbox)) == 1


def test_pipelines_of_one_priority_take_turns(bench: Bench, inbox: Inbox) -> None:
    demo, uncond = ([bench.submit(model=model) for _ in range(3)] for model in ("demo", "demo-uncond"))
    assert taken(inbox, room=1, spare=0) == demo[:1]
    assert taken(inbox, room=4, spare=0) == [uncond[0], demo[1], uncond[1], demo[2]]
    assert taken(inbox, room=4, spare=0) == [uncond[2]]


@pytest.mark.parametrize("room", [1, 3, 2 * PRIORITY_RATIO])
def test_each_16th_job_is_of_the_next_lower_priority(bench: Bench, inbox: Inbox, room: int) -> None:
    models = ["demo", "demo-uncond"]
    low = [bench.submit(priority="low", model=model) for model in models for _ in range(2)]
    for _ in range(PRIORITY_RATIO):
        for model in models:
            bench.submit(priority="high", model=model)
    order: list[str] = []
    while len(order) < 2 * PRIORITY_RATIO:
        order += taken(inbox, room=min(room, 2 * PRIORITY_RATIO - len(order)), spare=0)
    assert [place + 1 for place, job_id in enumerate(order) if job_id in low] == [PRIORITY_RATIO, 2 * PRIORITY_RATIO]
    assert [order[PRIORITY_RATIO - 1], order[2 * PRIORITY_RATIO - 1]] == [low[0], low[2]], (
        "pipelines alternate here too"
    )


def test_lowest_of_three_priorities_is_claimed_at_each_256th_time() -> None:
    indices = [priority_of_next(claimed, 3) for claimed in range(256)]
    assert (indices.count(0), indices.count(1), indices[-1]) == (256 - 16, 15, 2)
    assert {priority_of_next(claimed, 1) for claimed in range(256)} == {0}


def test_job_that_another_worker_took_after_the_look_at_the_queue_is_passed_over(
    bench: Bench, inbox: Inbox, open_inbox: OpenInbox
) -> None:
    first, second, third = (bench.submit() for _ in range(3))
    # claim by claim, because `poll` would make all of them before another worker comes
    other, claims = open_inbox("cpu-1"), inbox._claimer.claim(3, 0, short)
    assert next(claims).job_id == first
    assert taken(other, room=1, spare=0) == [second]
    assert [each.job_id for each in claims] == [third]
