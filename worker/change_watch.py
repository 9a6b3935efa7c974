"""Watches for a requested change of the pipelines, which is made after the worker's loop has ended."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from jobs.contract.changes import PipelineChange
from worker.background_calls import BackgroundCalls


class ChangeWatch:
    """Looks for a change on its own thread, because looking reads files. All methods are for the loop's thread."""

    def __init__(self, look: Callable[[], PipelineChange | None], calls: BackgroundCalls) -> None:
        self._look, self._calls = look, calls
        self._thread = ThreadPoolExecutor(1, "changes")
        self._is_looking = False
        self.due: PipelineChange | None = None  # accepted; the worker takes no job from now on

    def look(self) -> None:
        """Look for a change, unless one is due or the last look has not ended."""
        if self._is_looking or self.due is not None:
            return
        self._is_looking = True

        def over(found: PipelineChange | None) -> None:
            self._is_looking, self.due = False, found

        self._calls.start(self._thread, self._look, over)

    def close(self) -> None:
        self._thread.shutdown()
