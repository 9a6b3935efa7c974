"""`adm sample` as a user runs it, to be killed at any instant."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jobs.settings import Settings

PATIENCE_SECONDS = 90.0


def waited(claim: Callable[[], bool]) -> bool:
    """Whether a claim about other processes comes true in time; they set no event of ours."""
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
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli", "sample", "--out", str(out), *arguments],
            env=inherited | given | {"OMP_WAIT_POLICY": "PASSIVE"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # what a shell starts in the background ignores it, and so would we
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no thread runs here
        )

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
        """Send a signal, and wait for the end; what was said on stderr."""
        self.process.send_signal(number)
        return self.end()

    def end(self) -> str:
        """Wait for the end; what was said on stderr."""
        _, said = self.process.communicate(timeout=PATIENCE_SECONDS)
        return said
