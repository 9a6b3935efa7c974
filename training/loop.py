"""The training loop: gradients, updates and saved states, resumable bit for bit at any step."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion.resample import LossSecondMomentSampler, TimestepSampler, UniformSampler, importance, timesteps_at
from models.checkpoints.network_file import build_network
from models.networks.compiler_flags import use_sound_flags
from models.networks.precision import DTYPES
from training.checkpointing import checkpoint_blocks
from training.config import RunConfig
from training.distributed import Group
from training.divergence import DivergenceWatch
from training.ema import Averages
from training.figures_window import Window
from training.images import Images
from training.objectives import build_objective
from training.optimisation import FlatGradients, learning_rate, parts
from training.samples import Batch, Samples, batches
from training.state import State, StateFiles
from vocabulary.precisions import Precision

SMALLEST_LOSS_SCALE = 2.0**-14  # of float16; an overflow at a smaller scale has another cause than float16


@dataclass(frozen=True)
class Tick:
    """A finished step; `line`: the figures since the last line of stats.jsonl, or None if no line is due."""

    step: int
    loss: float
    line: dict[str, float] | None


class Run:
    """A run: all objects that change from step to step.

    All draws of a step are a function of the seed and its samples' numbers (training.samples), and the saved state has
    everything else, so an interrupted run gives the same result as an uninterrupted one.
    """

    def __init__(
        self, config: RunConfig, data: Images, *, device: torch.device, precision: Precision, group: Group
    ) -> None:
        self.config, self.data, self.device, self.precision, self.group = config, data, device, precision, group
        torch.manual_seed(config.seed)  # initial weights are drawn on the CPU, so that they are equal on every device
        self.network = build_network(config.network_config(max(len(data.class_names), 1)))
        layout = torch.contiguous_format if precision == "fp32" and device.type == "cpu" else torch.channels_last
        self.network.to(device=device, memory_format=layout)  # type: ignore[call-overload]  # missing in torch's stubs
        if config.compute.checkpointing:
            checkpoint_blocks(self.network)
        self._forward: Callable[..., Tensor] = self.network
        if config.compute.compile:
            use_sound_flags()
            self._forward = torch.compile(self.network)
        self.objective = build_objective(config, len(data.class_names))
        self.timesteps = _timestep_sampler(config)
        given = config.optimiser
        self.gradients = FlatGradients(self.network.parameters())
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(),
            lr=given.learning_rate,
            betas=given.betas,
            weight_decay=given.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.averages = Averages(self.parameters, config.averages.rates, config.averages.power)
        self.watch, self.window = DivergenceWatch(), Window(config)
        self.step, self.seconds = 0, 0.0

    @property
    def parameters(self) -> dict[str, Tensor]:
        return dict(self.network.named_parameters())

    def train(self, files: StateFiles | None, wants_stop: Callable[[], bool]) -> Iterator[Tick]:
        """Train to the end, or until a process wants to stop; yield after every step.

        A state is saved after the check of its gradient and before the weights' update, so that no saved state diverges
        at its next step. Raises: DivergedError; SaveError.
        """
        config, saved = self.config, time.monotonic()
        samples = Samples(self.data, config.data, config.seed, more_noise=config.objective.low_res_noise > 0)
        share = batches(samples, config.optimiser.batch_size, self.step, self.group.rank, self.group.size)
        started = time.monotonic()
        for batch in share:
            loss, norm, stop = self._compute(batch, wants_stop())
            ends = stop or self.step >= config.optimiser.steps
            snapshot = self._ends_interval(config.saving.snapshot_steps)
            if files is not None and (ends or snapshot or time.monotonic() - saved > config.saving.state_seconds):
                files.save(self.state(), snapshot=snapshot)
                saved = time.monotonic()
            if ends:
                break
            self._update(loss, norm)
            now = time.monotonic()
            self.seconds, started = self.seconds + now - started, now
            yield Tick(self.step, loss, self._line(norm))
            started = time.monotonic()  # excludes previews and measurements
        if files is not None:
            files.finish()

    def _ends_interval(self, steps: int) -> bool:
        return steps > 0 and self.step > 0 and self.step % steps == 0

    def _compute(self, batch: Batch, stop: bool) -> tuple[float, float, bool]:
        """Compute the gradient of a batch; return loss and norm over all processes, and whether one wants to stop.

        Raises: DivergedError.
        """
        given = self.config.optimiser
        self.network.train()
        self.gradients.clear()
        self.window.begin_step()
        for part in parts(len(batch), given.microbatch):
            micro = batch[part].to(self.device)
            if self.config.network.dropout:
                torch.manual_seed(hash((self.config.seed, self.step, self.group.rank, part.start)))
            weights = self.timesteps.weights().to(self.device)
            t = timesteps_at(weights, micro.position)
            with self._autocast():
                losses = self.objective(self._forward, micro, t)
            weighted = losses.total * importance(weights)[t].to(losses.total.dtype)
            loss = weighted.sum() / given.batch_size
            self.scaler.scale(loss).backward()
            self.gradients.add_loss(loss.detach())
            self.window.add(losses, t)
        loss_of_all, stop = self.gradients.add_up(self.group, stop=stop)
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimiser)
        norm = self.gradients.norm
        if not self._overflowed(norm):
            self.watch.check(self.step, loss_of_all, norm)
        return loss_of_all, norm, stop

    def _overflowed(self, norm: float) -> bool:
        """Return whether float16 made the gradient overflow; then the step is skipped and the loss scale halved."""
        finite = norm < float("inf")
        return self.scaler.is_enabled() and not finite and self.scaler.get_scale() >= SMALLEST_LOSS_SCALE

    def _update(self, loss: float, norm: float) -> None:
        given = self.config.optimiser
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(given, self.step)
        self.gradients.clip(norm, given.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.step += 1
        if not self._overflowed(norm):
            self.watch.note(loss, norm)
            self.averages.update(self.parameters, self.step)
        table = self.group.gather(self.window.table())
        self.timesteps.update(table[:, 0].long(), table[:, 1])
        self.window.end_step(table)

    def _line(self, norm: float) -> dict[str, float] | None:
        if self.step % self.config.saving.log_steps and self.step != self.config.optimiser.steps:
            return None
        rate = learning_rate(self.config.optimiser, self.step - 1)
        scale = {"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}
        return self.window.line(self.step) | {
            "learning_rate": rate,
            "gradient_norm": norm,
            **scale,
        }

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32"):
            yield

    @contextmanager
    def averaged(self, name: str) -> Iterator[nn.Module]:
        """The network in evaluation mode with an average's weights, within the block."""
        trained = {key: each.detach().clone() for key, each in self.parameters.items()}
        try:
            self.set_weights(self.averages.values[name])
            self.network.eval()
            with torch.no_grad(), self._autocast():
                yield self.network
        finally:  # an interrupt may save the run, which must not save the average as the trained weights
            self.set_weights(trained)

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights into the network in place, because it may be compiled and its gradients are views."""
        for key, parameter in self.parameters.items():
            parameter.copy_(weights[key])

    def state(self) -> State:
        """The state from which the run can resume."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "network": self.parameters,
            "averages": self.averages.values,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "watch": self.watch.state(),
            "timesteps": self.timesteps.state(),
            "window": self.window.state(),
        }

    def load(self, state: State) -> None:
        """Resume from a state. Raises: ValueError if it is of another network."""
        shapes = {key: each.shape for key, each in self.parameters.items()}
        if {key: each.shape for key, each in state["network"].items()} != shapes:
            raise ValueError("the state is of another network")
        self.set_weights(state["network"])
        self.averages.load(state["averages"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.watch.load(state["watch"])
        self.timesteps.load(state["timesteps"])
        self.window.load(state["window"])
        self.step, self.seconds = state["step"], state["seconds"]


def _timestep_sampler(config: RunConfig) -> TimestepSampler:
    if config.objective.timestep_sampler == "uniform":
        return UniformSampler(config.process.num_timesteps)
    return LossSecondMomentSampler(config.process.num_timesteps)
