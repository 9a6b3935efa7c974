"""Runs a training run as one command: opens its folder, trains, shows progress, and saves the state at the end."""

import errno
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from models.host_memory import keep_freed_memory
from models.networks.precision import best_precision
from runfolder.folder import (
    INFO,
    PREVIEWS,
    STATE,
    locked,
    read_json,
    snapshot_path,
    snapshot_steps,
    write_json,
)
from runfolder.stats import append_line, forget_after
from training.config import ConfigError, RunConfig, check_allowed
from training.data import Split, open_data
from training.distributed import join_group, local_device
from training.divergence import DivergedError
from training.events import Events
from training.held_out_figures import held_out_figures
from training.loop import Run, Tick
from training.official_files import RANDOM_WEIGHTS, Beginning, begin_at
from training.preview import write_preview
from training.run_record import record_start, recorded_data, refuse_another_run
from training.state import SaveError, StateFiles, read_state, rewind_to
from vocabulary.counts import counted
from vocabulary.precisions import Precision

LOG_SECONDS = 30.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Request:
    """The options of a start: the run's folder, and how to resume it.

    rewind: resume from the newest snapshot up to this step. minutes: stop after so long; the next start resumes.
    beginning: the initial weights of a new run.
    """

    folder: Path
    allow_changes: Collection[str] = ()
    rewind: int | None = None
    minutes: float | None = None
    beginning: Beginning = RANDOM_WEIGHTS
    cache: Path = Path("data/cache")


class TrainingError(ValueError):
    """A run cannot start or resume; the message is one line with the reason and a remedy."""


def train(config: RunConfig, request: Request) -> bool:
    """Train until the run's end, an interrupt or the requested minutes; return whether the run has ended.

    Raises: ConfigError, TrainingError, RunFolderError, DivergedError, SaveError.
    """
    check_allowed(request.allow_changes, config)
    keep_freed_memory()
    device = local_device(config.compute.device)
    precision: Precision = best_precision(device) if config.compute.precision == "auto" else config.compute.precision
    config = config.model_copy(update={"compute": config.compute.model_copy(update={"precision": precision})})
    with join_group(device) as group, ExitStack() as resources:
        if config.optimiser.batch_size % group.size:
            raise ConfigError(
                f"optimiser.batch_size {config.optimiser.batch_size} cannot be shared by "
                f"{counted(group.size, 'process')}"
            )
        if group.leads:
            resources.enter_context(locked(request.folder))
        split = open_data(config.data, config.network.image_size, request.cache)
        if config.kind in ("classifier", "judge") and len(split.training.class_names) < 2:
            raise ConfigError(f"a {config.kind} needs two classes or more; the images have one")
        run = Run(config, split.training, device=device, precision=precision, group=group)
        data = recorded_data(split) if group.leads else {}
        if group.leads:
            refuse_another_run(run, request.folder, data, request.allow_changes)
        group.wait()
        _load_start(run, request)
        if group.leads:
            record_start(run, request.folder, data)
        return _train(run, split, request)


def _load_start(run: Run, request: Request) -> None:
    """Load the folder's state, or the snapshot for --rewind, if there is one. Raises: TrainingError; WeightsError."""
    path = request.folder / STATE
    if request.rewind is not None:
        steps = snapshot_steps(request.folder)
        earlier = [step for step in steps if step <= request.rewind]
        if not earlier:
            known = ", ".join(map(str, steps)) or "none"
            raise TrainingError(f"there is no snapshot of step {request.rewind} or before; there are: {known}")
        path = snapshot_path(request.folder, earlier[-1])
    if path.exists():
        try:
            state = read_state(path)
        except ValueError as error:
            raise TrainingError(f"{error}{_ways_back(request.folder)}") from error
        try:
            run.load(state)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise TrainingError(f"{path}: {error}") from error
    else:
        begin_at(run, request.beginning)
    if run.group.leads:
        if request.rewind is not None:
            rewind_to(request.folder, run.step)
        forget_after(request.folder, run.step)
        if run.step:
            print(f"resuming at step {run.step}", flush=True)


def _train(run: Run, split: Split, request: Request) -> bool:
    config, folder = run.config, request.folder
    files = StateFiles(folder, config.saving.keep_snapshots) if run.group.leads else None
    deadline = None if request.minutes is None else time.monotonic() + 60 * request.minutes
    with _stop_signals() as stopping, Events(folder if run.group.leads else None) as events:

        def wants_stop() -> bool:
            return stopping() or (deadline is not None and time.monotonic() > deadline)

        show = _Bar(config) if sys.stdout.isatty() and run.group.leads else _Lines(config, silent=not run.group.leads)
        with show:
            for tick in run.train(files, wants_stop):
                show(tick)
                if not run.group.leads:
                    continue
                figures = dict(tick.line or {})
                if _is_due(tick.step, config.saving.held_out_steps, config.optimiser.steps):
                    with run.averaged(run.averages.first) as network:
                        figures |= {"step": tick.step, **held_out_figures(run, network, split.held_out)}
                if figures:
                    append_line(folder, figures)
                    events.write(figures)
                if _is_due(tick.step, config.saving.preview_steps, config.optimiser.steps):
                    with run.averaged(run.averages.first) as network:
                        write_preview(config, network, split.training, folder / PREVIEWS / f"{tick.step:08d}.png")
    ended = run.step >= config.optimiser.steps
    if run.group.leads:
        write_json(folder / INFO, read_json(folder / INFO) | {"step": run.step})
        print(f"ended at step {run.step}" if ended else f"stopped at step {run.step}; the same command resumes here")
    return ended


def _is_due(step: int, interval: int, steps: int) -> bool:
    return step == steps or (interval > 0 and step % interval == 0)


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM or SIGINT was received; a second signal ends the process."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def advice(error: DivergedError | SaveError, config: RunConfig, folder: Path) -> str:
    """One line for a run that could not continue: what is saved, and what to try."""
    saved = (folder / STATE).exists()
    if isinstance(error, SaveError):
        then = (
            "the run resumes from its previous state" if saved else "the run begins anew, because it is its first state"
        )
        remedy = (
            "correct that"
            if isinstance(error.__cause__, OSError) and error.__cause__.errno not in FULL
            else "make room"
        )
        return f"{error}; {remedy}, then start again: {then}"
    rate = config.optimiser.learning_rate
    if not saved:
        return (
            f"the run has diverged: {error}; it had saved no state yet. Start again with a smaller learning rate "
            f"(now {rate:g})"
        )
    return (
        f"the run has diverged: {error}; its last good state is kept in {folder / STATE}. Start again with a smaller "
        f"learning rate (now {rate:g}) and --allow-change optimiser.learning_rate{_ways_back(folder)}"
    )


def _ways_back(folder: Path) -> str:
    steps = snapshot_steps(folder)
    return f", or go back with --rewind STEP (snapshots: {', '.join(map(str, steps))})" if steps else ""


class _Smoothed:
    """A running mean of the loss, because losses of single batches vary too much."""

    RATE = 0.98

    def __init__(self) -> None:
        self.loss: float | None = None

    def add(self, tick: Tick) -> float:
        self.loss = tick.loss if self.loss is None else self.RATE * self.loss + (1 - self.RATE) * tick.loss
        return self.loss


class _Bar:
    """A progress bar on a terminal."""

    def __init__(self, config: RunConfig) -> None:
        columns = (
            BarColumn(),
            TextColumn("{task.percentage:.1f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._progress, self._smooth = Progress(*columns), _Smoothed()
        self._task = self._progress.add_task("", total=config.optimiser.steps)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, tick: Tick) -> None:
        loss = self._smooth.add(tick)
        self._progress.update(self._task, completed=tick.step, description=f"step {tick.step}  loss {loss:.4g}")


class _Lines:
    """Periodic lines in a log."""

    def __init__(self, config: RunConfig, *, silent: bool) -> None:
        self._steps, self._silent, self._shown, self._smooth = config.optimiser.steps, silent, 0.0, _Smoothed()

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, tick: Tick) -> None:
        loss = self._smooth.add(tick)
        if not self._silent and time.monotonic() - self._shown > LOG_SECONDS:
            self._shown = time.monotonic()
            print(f"{tick.step / self._steps:6.1%}  step {tick.step}  loss {loss:.4g}", flush=True)
