"""`adm sample` as a user runs it, to be killed at any instant."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile

from jobs.settings import Settings
from tests.warm import WORKER, WarmProgram

PATIENCE_SECONDS = 300.0  # for a busy machine; nothing waits longer than it must


def waited(claim: Callable[[], bool]) -> bool:
    """Return whether a claim about other processes comes true in time; they set no event of ours."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


class Sampling:
    """A running `adm sample`."""

    def __init__(self, settings: Settings, out: Path, *arguments: str) -> None:
        self.out = out
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ADM_")}
        given = {f"ADM_{name.upper()}": str(value) for name, value in settings.model_dump(exclude_unset=True).items()}
        self._printed = TemporaryFile("w+")  # noqa: SIM115 - closed at the program's end
        command = ["sample", "--out", str(out), *arguments]
        self.process = WarmProgram("cli", command, inherited | given, self._printed.fileno(), WORKER)

    @property
    def parts(self) -> int:
        """Chunks that are kept."""
        folder = self.out.with_name(f"{self.out.name}.parts")
        return len(list(folder.glob("*.rgb"))) if folder.exists() else 0

    def wait_parts(self, parts: int) -> None:
        """Wait until so many chunks are kept, and the run is not at its end."""
        assert waited(lambda: self.parts >= parts or self.process.poll() is not None)
        assert self.process.poll() is None, self.end()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> str:
        """Send a signal, and wait for the end; returns what was printed."""
        self.process.send_signal(number)
        return self.end()

    def end(self) -> str:
        """Wait for the end; returns what was printed."""
        self.process.wait(PATIENCE_SECONDS)
        with self._printed:
            self._printed.seek(0)
            return self._printed.read()
