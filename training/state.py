"""A run's state on disk: written atomically in the background, with snapshots for --rewind."""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from files.atomic import atomic_write
from runfolder.folder import SNAPSHOTS, STATE, snapshot_path, snapshot_steps

State = dict[str, Any]


class SaveError(OSError):
    """A state could not be written; the previous one still exists."""


class StateFiles:
    """Writes copies of states in a thread of its own, at most one at a time."""

    def __init__(self, folder: Path, keep_snapshots: int) -> None:
        self.folder, self.keep_snapshots = folder, keep_snapshots
        self._thread = ThreadPoolExecutor(1, "state")
        self._writing: Future[None] | None = None

    def save(self, state: State, *, snapshot: bool) -> None:
        """Start writing a state, and optionally a snapshot. Raises: SaveError of the previous save."""
        self.finish()
        copied = _copied(state)
        self._writing = self._thread.submit(self._write, copied, snapshot)

    def finish(self) -> None:
        """Wait until the last save is on disk. Raises: SaveError."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, state: State, snapshot: bool) -> None:
        target = self.folder / STATE
        try:
            if snapshot:
                (self.folder / SNAPSHOTS).mkdir(exist_ok=True)
                with atomic_write(snapshot_path(self.folder, state["step"]), durable=True) as file:
                    torch.save(state, file)
                for step in snapshot_steps(self.folder)[: -self.keep_snapshots]:
                    snapshot_path(self.folder, step).unlink()
            with atomic_write(target, durable=True) as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
            raise SaveError(f"{target}: the state of step {state['step']} cannot be saved ({error})") from error


def read_state(path: Path) -> State:
    """Read a state. Raises: ValueError, which names the file, if it is not the state of a run; MemoryError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch and its unpickler raise errors of any type for a damaged file
        reason = "".join(str(error).splitlines()[:1])
        raise ValueError(f"{path}: the state cannot be read ({type(error).__name__}: {reason})") from error
    if not isinstance(state, dict) or "step" not in state:
        raise ValueError(f"{path}: is not the state of a run")
    return state


def rewind_to(folder: Path, step: int) -> None:
    """Make the snapshot of this step the run's state, and remove later ones, which the run will not pass again."""
    with snapshot_path(folder, step).open("rb") as snapshot, atomic_write(folder / STATE, durable=True) as file:
        shutil.copyfileobj(snapshot, file)
    for each in snapshot_steps(folder):
        if each > step:
            snapshot_path(folder, each).unlink()


def _copied(value: Any) -> Any:
    """A copy on the CPU, independent of later training steps."""
    match value:
        case torch.Tensor():
            return value.detach().to("cpu", copy=True)
        case dict():
            return {key: _copied(each) for key, each in value.items()}
        case list() | tuple():
            return type(value)(_copied(each) for each in value)
    return value
