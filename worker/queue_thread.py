"""The inbox on a thread of its own, so that steps go on while Redis is slow or away."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from jobs.contract.job import Progress
from jobs.contract.workers import WorkerInfo
from jobs.queue.events import Preview
from worker.errands import Errands, nothing
from worker.inbox import Cancel, Inbox, Submit
from worker.taking import Claim, WouldRun

T = TypeVar("T")

MOST_PREVIEWS = 32  # that wait for Redis; further ones are left out


class QueueThread:
    """Makes the calls of one inbox, in the order in which they are asked for. All methods are for the loop's thread.

    While Redis is away a result is written again and again, and all behind it waits. That is bounded: nothing is
    claimed meanwhile, at most one poll and one heartbeat wait, and of each job only the latest progress.
    """

    def __init__(self, inbox: Inbox, errands: Errands) -> None:
        self._inbox, self._errands = inbox, errands
        self._thread = ThreadPoolExecutor(1, "queue")
        self._progress: dict[str, tuple[Claim, Progress]] = {}  # by token
        self._previews = self._asked_for = 0
        self.is_polling = self.is_reporting = False
        self._is_beating = False

    @property
    def is_busy(self) -> bool:
        """Whether anything that was asked for is not done yet."""
        return self._asked_for > 0

    def poll(
        self,
        *,
        room: int,
        spare: int,
        would_run: WouldRun,
        wait_seconds: float,
        then: Callable[[Submit | Cancel], None],
    ) -> None:
        """Look for jobs and cancellations; `then` gets each. Until one look is over, this begins no other."""
        if self.is_polling:
            return
        self.is_polling = True

        def over(commands: Sequence[Submit | Cancel]) -> None:
            self.is_polling = False
            for each in commands:
                then(each)

        call = partial(self._inbox.poll, room=room, spare=spare, would_run=would_run, wait_seconds=wait_seconds)
        self.write(call, over)

    def heartbeat(self, info: WorkerInfo, metrics: str, dropped: Callable[[str], None]) -> None:
        """Send a heartbeat, unless one waits already; `dropped` gets each job that is to be dropped."""
        if self._is_beating:
            return
        self._is_beating = True

        def beat() -> list[str]:
            return self._inbox.heartbeat(info, metrics)

        def over(job_ids: Sequence[str]) -> None:
            self._is_beating = False
            for each in job_ids:
                dropped(each)

        self.write(beat, over)

    def progress(self, reports: Sequence[tuple[Claim, Progress]]) -> None:
        """Report how far jobs are; of what waits, the latest report of each job counts."""
        self._progress |= {claim.token: (claim, progress) for claim, progress in reports}
        if self.is_reporting or not self._progress:
            return
        self.is_reporting = True
        waiting, self._progress = list(self._progress.values()), {}

        def over(_: None) -> None:
            self.is_reporting = False
            self.progress(())  # what came meanwhile

        self.write(lambda: self._inbox.progress(*waiting), over)

    def preview(self, claim: Claim, preview: Preview) -> None:
        """Show a preview, unless too many wait already."""
        if self._previews >= MOST_PREVIEWS:
            return
        self._previews += 1

        def over(_: None) -> None:
            self._previews -= 1

        self.write(lambda: self._inbox.preview(claim, preview), over)

    def write(self, call: Callable[[], T], then: Callable[[T], None] = nothing) -> None:
        """Make a call of the inbox after all that were asked for before; `then` gets its result."""
        self._asked_for += 1

        def over(result: T) -> None:
            self._asked_for -= 1
            then(result)

        self._errands.start(self._thread, call, over)

    def close(self) -> None:
        """Return when everything asked for is done; how long Redis is waited for, the inbox says."""
        self._thread.shutdown()
