"""Calls that are answered together: each gets its own answer, and callers take turns at the places of a batch."""

import asyncio
from collections.abc import Sequence
from threading import Event

from service.batches import MOST, Batches


def test_call_of_one_caller_is_in_the_next_batch_however_many_of_another_wait() -> None:
    batches: list[list[str]] = []
    begun, released = Event(), Event()

    def answer_all(asked: Sequence[str]) -> list[str]:
        batches.append(list(asked))
        begun.set()
        assert released.wait(60)
        return [each.upper() for each in asked]

    async def scenario() -> list[str]:
        calls = Batches(answer_all, lambda each: each.partition(" ")[0])
        first = asyncio.create_task(calls.ask("ann first"))
        await asyncio.to_thread(begun.wait)
        many = [asyncio.create_task(calls.ask(f"ann {number}")) for number in range(3 * MOST)]
        await asyncio.sleep(0)
        others = [asyncio.create_task(calls.ask(f"bob {number}")) for number in range(2)]
        await asyncio.sleep(0)
        released.set()
        return list(await asyncio.gather(first, *many, *others))

    answers = asyncio.run(scenario())
    assert answers[:2] == ["ANN FIRST", "ANN 0"]
    assert answers[-2:] == ["BOB 0", "BOB 1"]
    assert [len(each) for each in batches] == [1, MOST, MOST, MOST, 2]
    assert batches[1][:5] == ["ann 0", "bob 0", "ann 1", "bob 1", "ann 2"]
    own = [each for batch in batches[1:] for each in batch if each.startswith("ann")]
    assert own == [f"ann {number}" for number in range(3 * MOST)], "calls of one caller keep their order"


def test_all_that_wait_get_the_error_of_a_batch_and_later_calls_are_answered() -> None:
    fails = [True]

    def answer_all(asked: Sequence[int]) -> list[int]:
        if fails:
            fails.clear()
            raise ConnectionError
        return list(asked)

    async def scenario() -> None:
        calls = Batches(answer_all, lambda each: str(each % 2))
        failed = await asyncio.gather(*(calls.ask(number) for number in range(2 * MOST)), return_exceptions=True)
        assert {type(each) for each in failed} == {ConnectionError}
        assert await calls.ask(7) == 7

    asyncio.run(scenario())


def test_answer_that_is_an_error_is_raised_for_its_call_alone() -> None:
    async def scenario() -> None:
        calls = Batches[int, int](lambda asked: [ValueError() if each == 1 else each for each in asked])
        found = await asyncio.gather(calls.ask(0), calls.ask(1), return_exceptions=True)
        assert found[0] == 0
        assert isinstance(found[1], ValueError)

    asyncio.run(scenario())
