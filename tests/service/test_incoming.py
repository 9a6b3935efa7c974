"""Bodies that are received at the same time: bounded together, in shares of their callers."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import hypothesis.strategies as st
from hypothesis import given
from starlette.types import Message

from jobs.contract.caller import Caller, Role
from jobs.contract.errors import RefusedError
from service.incoming import MAX_BODY_BYTES, Body, Incoming

MOST = 1000


class Upload:
    """A route that holds a body, whose parts come from a queue."""

    def __init__(self, incoming: Incoming, caller: str) -> None:
        self.caller = caller
        self._parts: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"state": {"caller": Caller(caller, Role.USER)}}
        self.body = Body(incoming, scope, self._parts.get, max_bytes=1 << 30)
        self._parts.put_nowait({"type": "http.request", "body": bytes(MAX_BODY_BYTES)})
        self.task = asyncio.create_task(self._hold())

    async def _hold(self) -> bool:
        """Receive until cancelled; True if the body was dropped."""
        try:
            with self.body.held():
                while True:
                    await self.body.receive()
        except RefusedError:
            return True

    async def send(self, num_bytes: int) -> None:
        self._parts.put_nowait({"type": "http.request", "body": bytes(num_bytes)})
        for _ in range(10):
            await asyncio.sleep(0)

    async def hang_up(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def held_by(uploads: Sequence[Upload]) -> Counter[str]:
    """The bytes that each caller holds, without callers that hold none."""
    num_bytes = Counter[str]()
    for each in uploads:
        if not each.task.done():
            num_bytes[each.caller] += each.body.num_bytes
    return +num_bytes


@given(
    plan=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(1, MOST), st.booleans())),
)
def test_bodies_are_bounded_together_and_a_caller_below_its_share_loses_none(
    plan: list[tuple[str, int, int, bool]],
) -> None:
    async def scenario() -> None:
        incoming, uploads = Incoming(MOST), dict[tuple[str, int], Upload]()
        for caller, number, num_bytes, hangs_up in plan:
            place = caller, number
            if place not in uploads or uploads[place].task.done():
                uploads[place] = Upload(incoming, caller)
            alive = [each for each in uploads.values() if not each.task.done()]
            wanted = held_by(alive)
            wanted[caller] += num_bytes
            await uploads[place].send(num_bytes)
            assert held_by(list(uploads.values())).total() <= MOST
            for each in alive:
                if each.task.done():
                    assert await each.task
                    assert wanted[each.caller] > MOST / len(wanted)
            if wanted.total() <= MOST:
                assert not any(each.task.done() for each in alive)
            if hangs_up and not uploads[place].task.done():
                await uploads[place].hang_up()
        await asyncio.gather(*(each.hang_up() for each in uploads.values()))
        assert (incoming._num_bytes, incoming._held) == (0, {})  # else later callers would find less room

    asyncio.run(scenario())
