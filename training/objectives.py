"""What each kind of network is trained to do: losses of a batch, image by image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.flags import select_types
from diffusion.losses import LossTerms, LossType, training_losses
from diffusion.process import MeanType, Process
from diffusion.schedule import Schedule
from training.augment import augment
from training.config import Objective as ObjectiveSettings
from training.config import RunConfig
from training.samples import Batch

CLEAN = 0  # timestep of the judge's images, and of classifiers that are not noised


@dataclass(frozen=True)
class Losses:
    """Of each image, [N]: what is minimised, and figures to report, by name."""

    total: Tensor
    figures: dict[str, Tensor]


class Objective(Protocol):
    """The losses of a batch whose images are at timesteps t [N]; a function of its arguments alone."""

    def __call__(self, network: Callable[..., Tensor], batch: Batch, t: Tensor) -> Losses: ...


class DiffusionObjective:
    """The official losses of a diffusion network or an upsampler (Nichol & Dhariwal 2021, section 3).

    With label dropout the last class of the network stands for "no class". An upsampler sees the area-reduced image
    under noise of a strength drawn for each image, up to the deviation low_res_noise.
    """

    def __init__(
        self,
        process: Process,
        settings: ObjectiveSettings,
        *,
        no_class: int | None = None,
        small_size: int | None = None,
    ) -> None:
        self.process, self.settings, self.no_class, self.small_size = process, settings, no_class, small_size
        self.loss_type = LossType(settings.loss)
        self.timesteps = process.network_timesteps
        self.weights = mse_weights(process, settings)

    def __call__(self, network: Callable[..., Tensor], batch: Batch, t: Tensor) -> Losses:
        x0, noise = batch.x0, batch.noise
        x_t = self.process.q_sample(x0, t, noise)
        output = network(x_t, self.timesteps.to(t.device)[t], **self._conditions(batch)).float()
        terms = training_losses(self.process, self.loss_type, output, x0, x_t, t, noise)
        return Losses(self._weighted(terms, t), {name: each.detach() for name, each in terms.named().items()})

    def _weighted(self, terms: LossTerms, t: Tensor) -> Tensor:
        if self.weights is None or terms.mse is None:
            return terms.loss
        weighted = terms.mse * self.weights.to(t.device)[t].to(terms.mse.dtype)
        return weighted if terms.vb is None else weighted + terms.vb

    def _conditions(self, batch: Batch) -> dict[str, Tensor]:
        conditions = {} if self.small_size is None else {"low_res": self.low_res(batch)}
        if self.no_class is not None:
            dropped = batch.drop < self.settings.label_dropout
            conditions["class_labels"] = batch.class_labels.masked_fill(dropped, self.no_class)
        return conditions

    def low_res(self, batch: Batch) -> Tensor:
        """What an upsampler is shown: [N, 3, small_size, small_size]."""
        assert self.small_size is not None
        size = (self.small_size, self.small_size)
        reduced = F.interpolate(batch.x0, size, mode="area")
        if not self.settings.low_res_noise:
            return reduced
        deviation = (self.settings.low_res_noise * batch.strength).to(reduced.dtype)[:, None, None, None]
        small = batch.more_noise[:, :, : size[0], : size[1]]
        return reduced + deviation * small


def mse_weights(process: Process, settings: ObjectiveSettings) -> Tensor | None:
    """Weights of the mse by timestep, [T] float64; None for the official, uniform one.

    min-snr: Hang et al. 2023, Eq. 8, for networks that predict eps or x_0. p2: Choi et al. 2022, Eq. 8.
    """
    if settings.weighting == "none":
        return None
    alpha_bar = process.schedule.alpha_bar
    snr = alpha_bar / (1 - alpha_bar)
    of_x0 = (
        snr.clamp(max=settings.min_snr_gamma)
        if settings.weighting == "min-snr"
        else snr / (1 + snr) ** settings.p2_gamma
    )
    return of_x0 if process.mean_type is MeanType.START_X else of_x0 / snr


class ClassifierObjective:
    """Cross entropy of images noised to timesteps t, or of clean ones (ADM, section 4)."""

    def __init__(self, process: Process, *, noised: bool) -> None:
        self.process, self.noised = process, noised
        self.timesteps = process.network_timesteps

    def __call__(self, network: Callable[..., Tensor], batch: Batch, t: Tensor) -> Losses:
        t = t if self.noised else torch.full_like(t, CLEAN)
        x_t = self.process.q_sample(batch.x0, t, batch.noise) if self.noised else batch.x0
        return cross_entropy(network(x_t, self.timesteps.to(t.device)[t]).float(), batch.class_labels)


class JudgeObjective:
    """Cross entropy of augmented clean images, so that a judge learns things and not the edges of a renderer."""

    def __call__(self, network: Callable[..., Tensor], batch: Batch, t: Tensor) -> Losses:
        return cross_entropy(network(augment(batch.x0, batch.augmentation, batch.noise)).float(), batch.class_labels)


def cross_entropy(logits: Tensor, class_labels: Tensor) -> Losses:
    """The cross entropy of each image, and whether its label is the likeliest, and among the five likeliest."""
    loss = F.cross_entropy(logits, class_labels, reduction="none")
    hits = {f"accuracy_{k}": top_k_hits(logits, class_labels, k) for k in (1, 5) if k < logits.shape[1]}
    return Losses(loss, {"loss": loss.detach(), **hits})


def top_k_hits(logits: Tensor, class_labels: Tensor, k: int) -> Tensor:
    """1.0 where the label is among the k highest logits: [N]."""
    return (logits.topk(k, dim=-1).indices == class_labels[:, None]).any(dim=-1).float()


def build_objective(config: RunConfig, num_classes: int) -> Objective:
    """The objective of a run whose data have so many classes."""
    process = build_process(config)
    match config.kind:
        case "diffusion" | "upsampler":
            # without label dropout no label is replaced by the one behind the last class, which then has no row
            no_class = num_classes if config.data.labelled else None
            return DiffusionObjective(
                process, config.objective, no_class=no_class, small_size=config.network.small_size
            )
        case "classifier":
            return ClassifierObjective(process, noised=config.objective.noised)
        case "judge":
            return JudgeObjective()


def build_process(config: RunConfig) -> Process:
    """The process of a run, with what its network predicts."""
    given = config.process
    mean_type, variance_type, _ = select_types(
        learn_sigma=given.learn_sigma, sigma_small=given.sigma_small, predict_xstart=given.predict_xstart
    )
    schedule = Schedule.named(given.schedule, given.num_timesteps)
    return Process(schedule, mean_type, variance_type, given.rescale_timesteps)
