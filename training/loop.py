"""The training loop: one story from a batch to a checkpoint, resumable at any moment."""

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from models.checkpoint import NetworkConfig, WeightsError, load_state, read_tensors, save_network
from training.ema import Ema
from training.optimisation import warmed_rate

STATE_FILE, EMA_FILE = "state.pt", "ema.safetensors"
GRADIENT_CLIP = 1.0
DIVERGED = 100.0  # times the loss of a network that knows nothing, about 1 or above; batches vary by a few times


class Task(Protocol):
    """What is trained: its network, and the loss of a batch that is a function of the step alone."""

    @property
    def config(self) -> NetworkConfig: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes in the order of their labels; none where the network is told no class."""

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The mean loss of a batch drawn with the generator, and figures to show."""

    def preview(self, model: nn.Module, path: Path) -> None:
        """Write a picture or figures of what the averaged network does now."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast. The run ends after `steps`, or after `minutes` of training time where that is given."""

    folder: Path
    batch_size: int
    learning_rate: float
    steps: int
    minutes: float | None = None
    weight_decay: float = 0.0
    ema_rate: float = 0.999
    warmup_steps: int = 200
    decay_share: float = 0.4
    seed: int = 0
    bf16: bool = False
    save_seconds: float = 120.0
    preview_seconds: float = 600.0


@dataclass
class Tick:
    """What a finished step reports. done is the share of the run, 0 to 1."""

    step: int
    done: float
    seconds: float
    figures: dict[str, float]


class Run:
    """One training run in its folder: continues from what the folder holds.

    Batches, timesteps and noise of a step come from (seed, step), so a run that was interrupted draws what it would
    have drawn. Raises: ValueError for a folder whose run is of another task, data, seed or batch size; WeightsError for
    a state that cannot be read.
    """

    def __init__(self, task: Task, plan: Plan) -> None:
        self.task, self.plan = task, plan
        self.optimizer = torch.optim.AdamW(
            task.model.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay
        )
        self.ema = Ema(task.model.state_dict(), plan.ema_rate)
        self.step, self.seconds = 0, 0.0
        self.first_loss: float | None = None  # a loss far above it is that of a run that has diverged
        self._saved_step: int | None = None
        self._whole = True  # False while weights, averages and step are of different moments
        plan.folder.mkdir(parents=True, exist_ok=True)
        self._partial.unlink(missing_ok=True)  # of a run that was killed: it may be what fills the disk
        if (plan.folder / STATE_FILE).exists():
            self._resume()

    def start_from(self, path: Path) -> None:
        """Begin at the weights of a network file, unless the run has begun already.

        Raises: WeightsError for a file that does not fit the network.
        """
        if self.step == 0:
            load_state(self.task.model, read_tensors(path), path.name)
            self.ema = Ema(self.task.model.state_dict(), self.plan.ema_rate)

    def ticks(self) -> Iterator[Tick]:
        """Train to the end of the plan, yielding after every step; saves as it goes, and when it is interrupted.

        Raises: FloatingPointError for a run that diverges, OSError for a state that cannot be saved; the last state
        that was saved stays.
        """
        plan, saved, previewed = self.plan, time.monotonic(), time.monotonic()
        try:
            while self.done < 1:
                started = time.monotonic()
                figures = self._train_step()
                self.seconds += time.monotonic() - started
                yield Tick(self.step, self.done, self.seconds, figures)
                if time.monotonic() - saved > plan.save_seconds:
                    self.save()
                    saved = time.monotonic()
                if time.monotonic() - previewed > plan.preview_seconds:
                    self.preview()
                    previewed = time.monotonic()
        except (FloatingPointError, OSError):
            raise
        except BaseException:  # an interrupt, or the caller's end
            if self._whole:
                self.save()
            raise
        self.save()

    @property
    def done(self) -> float:
        if self.plan.minutes is not None:
            return min(self.seconds / (60 * self.plan.minutes), 1.0)
        return min(self.step / self.plan.steps, 1.0)

    def _train_step(self) -> dict[str, float]:
        plan, task = self.plan, self.task
        rate = warmed_rate(
            plan.learning_rate, self.step, self.done, warmup_steps=plan.warmup_steps, decay_share=plan.decay_share
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, figures = self._loss()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(task.model.parameters(), GRADIENT_CLIP).item()
        if not math.isfinite(norm):
            raise self._diverged(f"the gradient's norm is {norm}")
        self._whole = False  # an interrupt from here on costs what came after the last save, and nothing else
        self.optimizer.step()
        # A fixed rate would carry the initial weights through a short run; this one forgets them within a few steps.
        self.ema.rate = min(plan.ema_rate, (1 + self.step) / (10 + self.step))
        self.ema.update(task.model.state_dict())
        self.step += 1
        self._whole = True
        return figures | {"lr": rate}

    def _loss(self) -> tuple[Tensor, dict[str, float]]:
        """The loss of the step that comes. Raises: FloatingPointError for one that says that the run has diverged."""
        generator = torch.Generator().manual_seed((self.plan.seed << 32) + self.step)
        self.task.model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.plan.bf16):
            loss, figures = self.task.loss(generator)
        value = loss.item()
        self.first_loss = value if self.first_loss is None else self.first_loss
        if not math.isfinite(value) or value > DIVERGED * max(self.first_loss, 1.0):  # less where it began trained
            raise self._diverged(f"the loss is {value:.4g}")
        return loss, figures

    def _diverged(self, what: str) -> FloatingPointError:
        kept = "nothing is saved yet" if self._saved_step is None else f"the state of step {self._saved_step} is kept"
        return FloatingPointError(
            f"{what} at step {self.step}; lower the learning rate, which is {self.plan.learning_rate:g}; {kept}"
        )

    @property
    def _partial(self) -> Path:
        return self.plan.folder / f"{STATE_FILE}.partial"

    def _made_of(self) -> dict[str, object]:
        """What must not change within a run, in the words of the command line."""
        task, plan = self.task, self.plan
        return {
            "task": type(task).__name__,
            "classes": task.class_names,
            "seed": plan.seed,
            "batch-size": plan.batch_size,
            **dataclasses.asdict(task.config),
        }

    def save(self) -> None:
        """Write the whole state, then the averaged network; each file appears whole or not at all.

        Raises: FloatingPointError for weights that have diverged; OSError where the disk takes no more.
        """
        with torch.no_grad():
            self._loss()
        folder = self.plan.folder
        state = {
            "made_of": self._made_of(),
            "first_loss": self.first_loss,
            "model": self.task.model.state_dict(),
            "ema": self.ema.values,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        try:
            with self._partial.open("wb") as file:
                torch.save(state, file)
            self._partial.replace(folder / STATE_FILE)
            save_network(folder / EMA_FILE, self.ema.values, self.task.config, dtype=torch.float32)
        except (OSError, RuntimeError) as error:  # the latter is torch's, for what the system refused it
            self._partial.unlink(missing_ok=True)
            kept = (
                "nothing was saved before" if self._saved_step is None else f"that of step {self._saved_step} is kept"
            )
            reason = error.strerror if isinstance(error, OSError) else "the disk may be full"
            raise OSError(f"{folder}: the state of step {self.step} was not saved ({reason}); {kept}") from error
        self._saved_step = self.step

    def preview(self) -> None:
        """Show what the averaged network does, in preview files of the run's folder."""
        trained = {name: value.clone() for name, value in self.task.model.state_dict().items()}
        try:
            self.task.model.load_state_dict(self.ema.values)
            self.task.model.eval()
            with torch.no_grad():
                self.task.preview(self.task.model, self.plan.folder / f"preview-{self.step:07d}.png")
        finally:  # an interrupt saves the run, and must not save the average as what is trained
            self.task.model.load_state_dict(trained)

    def _resume(self) -> None:
        path = self.plan.folder / STATE_FILE
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:  # torch raises a dozen kinds for a damaged file
            raise WeightsError(f"{path}: cannot be read ({type(error).__name__}); delete it to start anew") from error
        for name, now in self._made_of().items():
            before = state.get("made_of", {}).get(name, now)  # states of before say nothing
            if before != now:
                raise ValueError(
                    f"{path.parent}: its run has {name} {_told(before)}, and not {_told(now)}; give another --out"
                )
        self.task.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.values = state["ema"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.first_loss, self._saved_step = state.get("first_loss"), self.step


def _told(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
