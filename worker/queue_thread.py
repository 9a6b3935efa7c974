"""Runs the inbox on a thread of its own, so that steps go on while Redis is slow or unavailable."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from jobs.contract.job import Progress
from jobs.contract.workers import WorkerInfo
from jobs.queue.events import Preview
from worker.background_calls import BackgroundCalls, ignore
from worker.claim import Cancel, Claim, Submit, WouldRun
from worker.inbox import Inbox

T = TypeVar("T")

MOST_PREVIEWS = 32  # waiting for Redis; further previews are dropped


class QueueThread:
    """Makes the calls of one inbox in the order in which they come. All methods are for the loop's thread.

    While Redis is unavailable, the write of a result is repeated and later calls wait. Their number is bounded: no job
    is claimed meanwhile, and at most one poll, one heartbeat and the latest progress of each job wait.
    """

    def __init__(self, inbox: Inbox, calls: BackgroundCalls) -> None:
        self._inbox, self._calls = inbox, calls
        self._thread = ThreadPoolExecutor(1, "queue")
        self._progress: dict[str, tuple[Claim, Progress]] = {}  # by token
        self._previews = self._num_calls = 0
        self.is_polling = self.is_reporting = False
        self._is_beating = False

    @property
    def is_busy(self) -> bool:
        """Return whether a call has not ended yet."""
        return self._num_calls > 0

    def poll(
        self,
        *,
        room: int,
        spare: int,
        would_run: WouldRun,
        wait_seconds: float,
        then: Callable[[Submit | Cancel], None],
    ) -> None:
        """Poll for jobs and cancellations; `then` gets each. Does nothing while a poll is running."""
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
        """Send a heartbeat, unless one is waiting; `dropped` gets the id of each job to drop."""
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
        """Report the progress of jobs; of waiting reports, only the latest of each job is sent."""
        self._progress |= {claim.token: (claim, progress) for claim, progress in reports}
        if self.is_reporting or not self._progress:
            return
        self.is_reporting = True
        waiting, self._progress = list(self._progress.values()), {}

        def over(_: None) -> None:
            self.is_reporting = False
            self.progress(())  # reports that came meanwhile

        self.write(lambda: self._inbox.reports.progress(*waiting), over)

    def preview(self, claim: Claim, preview: Preview) -> None:
        """Publish a preview, unless MOST_PREVIEWS are waiting."""
        if self._previews >= MOST_PREVIEWS:
            return
        self._previews += 1

        def over(_: None) -> None:
            self._previews -= 1

        self.write(lambda: self._inbox.reports.preview(claim, preview), over)

    def write(self, call: Callable[[], T], then: Callable[[T], None] = ignore) -> None:
        """Make a call of the inbox after all earlier ones; `then` gets its result."""
        self._num_calls += 1

        def over(result: T) -> None:
            self._num_calls -= 1
            then(result)

        self._calls.start(self._thread, call, over)

    def close(self) -> None:
        """Return when all queued calls are done. The inbox sets the limit for waiting on Redis."""
        self._thread.shutdown()
