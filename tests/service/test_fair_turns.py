"""Turns at a limited resource: many calls of one caller do not delay another caller's one, and no turn is lost."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from service.fair_turns import FairTurns


async def waiting(turns: FairTurns, caller: str, order: list[str]) -> None:
    await turns.acquire(caller)
    order.append(caller)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def ran(scenario: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await scenario()

    asyncio.run(run())


def test_callers_take_turns_however_many_each_has_waiting() -> None:
    async def scenario() -> None:
        turns, order = FairTurns(2), list[str]()
        tasks = [asyncio.create_task(waiting(turns, "many", order)) for _ in range(6)]
        await settle()
        tasks += [asyncio.create_task(waiting(turns, each, order)) for each in ("one", "other", "one")]
        await settle()
        assert order == ["many", "many"]
        for _ in range(7):
            turns.release()
            await settle()
        assert order == ["many", "many", "many", "one", "other", "many", "one", "many", "many"]
        await asyncio.gather(*tasks)

    ran(scenario)


def test_only_so_many_have_a_turn_at_once_and_each_is_passed_on() -> None:
    async def scenario() -> None:
        turns, order = FairTurns(1), list[str]()
        tasks = [asyncio.create_task(waiting(turns, str(number), order)) for number in range(3)]
        await settle()
        assert len(order) == 1
        for number in (2, 3):
            turns.release()
            await settle()
            assert len(order) == number
        turns.release()
        await turns.acquire("later")  # at once: it is free
        await asyncio.gather(*tasks)

    ran(scenario)


@pytest.mark.parametrize("given_first", [False, True])
def test_wait_that_is_cancelled_keeps_no_turn(given_first: bool) -> None:
    async def scenario() -> None:
        turns, order = FairTurns(1), list[str]()
        await turns.acquire("holder")
        gone, next_one = (asyncio.create_task(waiting(turns, each, order)) for each in ("gone", "next"))
        await settle()
        if given_first:
            turns.release()  # gives it the turn, and it is cancelled before it runs
        gone.cancel()
        await settle()
        if not given_first:
            turns.release()
        await settle()
        assert order == ["next"]
        await next_one
        assert gone.cancelled()

    ran(scenario)


def test_waits_that_were_given_up_use_no_turn_of_their_caller() -> None:
    """After a caller's calls have given up, its next one is served as soon as those of others."""

    async def scenario() -> None:
        turns, order = FairTurns(1), list[str]()
        await turns.acquire("holder")
        given_up = [asyncio.create_task(waiting(turns, "impatient", order)) for _ in range(5)]
        await settle()
        for each in given_up:
            each.cancel()
        await settle()
        tasks = [asyncio.create_task(waiting(turns, "patient", order)) for _ in range(3)]
        await settle()
        tasks.append(asyncio.create_task(waiting(turns, "impatient", order)))
        await settle()
        for _ in tasks:
            turns.release()
            await settle()
        assert order == ["patient", "impatient", "patient", "patient"]
        await asyncio.gather(*tasks)

    ran(scenario)
