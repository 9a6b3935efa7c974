"""The training objective of each kind of network: losses of a batch, image by image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.flags import select_types
from diffusion.grey import channel_mean
from diffusion.losses import LossTerms, LossType, training_losses
from diffusion.process import DiffusionProcess, MeanType
from diffusion.schedule import Schedule
from training.augment import augment
from training.config import RunConfig
from training.samples import Batch
from training.sections import Objective as ObjectiveSettings

CLEAN = 0  # timestep of images for judges and for classifiers without noise


@dataclass(frozen=True)
class Losses:
    """For each image, [N]: the loss, and reported figures by name."""

    total: Tensor
    figures: dict[str, Tensor]


class Objective(Protocol):
    """Computes the losses of a batch at timesteps t [N]; a function of its arguments alone."""

    def __call__(self, network: Callable[..., Tensor], batch: Batch, t: Tensor) -> Losses: ...


class DiffusionObjective:
    """The official losses of a diffusion network or an upsampler (Nichol & Dhariwal 2021, section 3).

    With label dropout, the last class of the network is "no class". An upsampler gets the area-reduced image with noise
    whose deviation is drawn for each image, up to low_res_noise.
    """

    def __init__(
        self,
        process: DiffusionProcess,
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
        x0, noise = self.x0(batch), batch.noise
        x_t = self.process.q_sample(x0, t, noise)
        output = network(x_t, self.timesteps.to(t.device)[t], **self._conditions(batch)).float()
        if self.process.grey:
            output = self.process.as_grey(output, x_t, t)
        terms = training_losses(self.process, self.loss_type, output, x0, x_t, t, noise)
        return Losses(self._weighted(terms, t), {name: each.detach() for name, each in terms.named().items()})

    def x0(self, batch: Batch) -> Tensor:
        """The clean images, with averaged channels if the diffusion process is of grey images."""
        return channel_mean(batch.x0) if self.process.grey else batch.x0

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
        """An upsampler's input: [N, 3, small_size, small_size]."""
        assert self.small_size is not None
        size = (self.small_size, self.small_size)
        reduced = F.interpolate(self.x0(batch), size, mode="area")
        if not self.settings.low_res_noise:
            return reduced
        deviation = (self.settings.low_res_noise * batch.strength).to(reduced.dtype)[:, None, None, None]
        small = batch.more_noise[:, :, : size[0], : size[1]]
        return reduced + deviation * small


def mse_weights(process: DiffusionProcess, settings: ObjectiveSettings) -> Tensor | None:
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

    def __init__(self, process: DiffusionProcess, *, noised: bool) -> None:
        self.process, self.noised = process, noised
        self.timesteps = process.network_timesteps

    def __call__(self, network: Callable[..., Tensor], batch: Batch, t: Tensor) -> Losses:
        t = t if self.noised else torch.full_like(t, CLEAN)
        x_t = self.process.q_sample(batch.x0, t, batch.noise) if self.noised else batch.x0
        return cross_entropy(network(x_t, self.timesteps.to(t.device)[t]).float(), batch.class_labels)


class JudgeObjective:
    """Cross entropy of augmented clean images, so that a judge learns the objects and not the renderer's edges."""

    def __init__(self, *, mirrors: bool) -> None:
        self.mirrors = mirrors

    def __call__(self, network: Callable[..., Tensor], batch: Batch, t: Tensor) -> Losses:
        x = augment(batch.x0, batch.augmentation, batch.noise, mirrors=self.mirrors)
        return cross_entropy(network(x).float(), batch.class_labels)


def cross_entropy(logits: Tensor, class_labels: Tensor) -> Losses:
    """The cross entropy of each image, with its top-1 and top-5 accuracy."""
    loss = F.cross_entropy(logits, class_labels, reduction="none")
    hits = {f"accuracy_{k}": top_k_hits(logits, class_labels, k) for k in (1, 5) if k < logits.shape[1]}
    return Losses(loss, {"loss": loss.detach(), **hits})


def top_k_hits(logits: Tensor, class_labels: Tensor, k: int) -> Tensor:
    """1.0 if the label is among the k highest logits, else 0.0: [N]."""
    return (logits.topk(k, dim=-1).indices == class_labels[:, None]).any(dim=-1).float()


def build_objective(config: RunConfig, num_classes: int) -> Objective:
    """The objective of a run whose data have this many classes."""
    process = build_process(config)
    match config.kind:
        case "diffusion" | "upsampler":
            # without label dropout there is no "no class" row after the last class, and no label is replaced by it
            no_class = num_classes if config.data.labelled else None
            return DiffusionObjective(
                process, config.objective, no_class=no_class, small_size=config.network.small_size
            )
        case "classifier":
            return ClassifierObjective(process, noised=config.objective.noised)
        case "judge":
            return JudgeObjective(mirrors=config.data.flip)


def build_process(config: RunConfig) -> DiffusionProcess:
    """The diffusion process of a run, with the quantities that its network predicts."""
    given = config.process
    mean_type, variance_type, _ = select_types(
        learn_sigma=given.learn_sigma, sigma_small=given.sigma_small, predict_xstart=given.predict_xstart
    )
    schedule = Schedule.named(given.schedule, given.num_timesteps)
    return DiffusionProcess(schedule, mean_type, variance_type, given.rescale_timesteps, given.grey)
