"""What can be trained: diffusion networks, upsamplers, noisy classifiers and the judge."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.losses import LossType, training_losses
from diffusion.process import Process
from models.classifier import NoisyClassifier
from models.config import ClassifierConfig, UNetConfig
from models.judge import Judge, JudgeConfig
from models.unet import SuperResUNet, UNet, build_unet
from training.augment import augment
from training.classifier_loss import top_k_hits
from training.data import LabelledImages
from training.preview import preview_images, write_grid


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator)


class DiffusionTask:
    """A class-conditional or unconditional diffusion network under the hybrid loss (Nichol & Dhariwal 2021, Eq. 16).

    label_dropout replaces labels by the last class row, which so learns the unconditional distribution.
    """

    def __init__(
        self, config: UNetConfig, process: Process, data: LabelledImages, batch_size: int, label_dropout: float = 0.0
    ) -> None:
        self.config, self.process, self.data = config, process, data
        self.batch_size, self.label_dropout = batch_size, label_dropout
        self.class_names = data.class_names if config.num_classes is not None else ()
        self.model: UNet = build_unet(config)

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x0, labels = self.data.draw(self.batch_size, generator)
        t = torch.randint(self.process.schedule.num_timesteps, (len(x0),), generator=generator)
        noise = noise_like(x0, generator)
        x_t = self.process.q_sample(x0, t, noise)
        y: Tensor | None = None
        if self.config.num_classes is not None:
            dropped = torch.rand(len(x0), generator=generator) < self.label_dropout
            y = labels.where(~dropped, torch.full_like(labels, self.config.num_classes - 1))
        output = self.model(x_t, self.process.network_timesteps[t], y).float()
        terms = training_losses(self.process, LossType.RESCALED_MSE, output, x0, x_t, t, noise)
        return terms.loss.mean(), {name: value.mean().item() for name, value in terms.named().items()}

    def preview(self, model: nn.Module, path: Path) -> None:
        classes = self.config.num_classes or 8
        labels = torch.arange(2 * classes) % classes if self.config.num_classes is not None else None
        shape = (3, self.config.image_size, self.config.image_size)
        images = preview_images(self.process, lambda x, t: model(x, t, labels), 2 * classes, shape)
        write_grid(images, path, columns=classes)


class UpsamplerTask:
    """A network that doubles images: conditioned on the area-reduced image, to which no noise is added."""

    def __init__(
        self, config: UNetConfig, process: Process, data: LabelledImages, batch_size: int, small_size: int
    ) -> None:
        self.config, self.process, self.data = config, process, data
        self.batch_size, self.small_size = batch_size, small_size
        self.class_names: tuple[str, ...] = ()
        model = build_unet(config)
        assert isinstance(model, SuperResUNet)
        self.model: SuperResUNet = model

    def reduce(self, x0: Tensor) -> Tensor:
        return F.interpolate(x0, (self.small_size, self.small_size), mode="area")

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x0, _ = self.data.draw(self.batch_size, generator)
        t = torch.randint(self.process.schedule.num_timesteps, (len(x0),), generator=generator)
        noise = noise_like(x0, generator)
        x_t = self.process.q_sample(x0, t, noise)
        output = self.model(x_t, self.process.network_timesteps[t], low_res=self.reduce(x0)).float()
        terms = training_losses(self.process, LossType.RESCALED_MSE, output, x0, x_t, t, noise)
        return terms.loss.mean(), {name: value.mean().item() for name, value in terms.named().items()}

    def preview(self, model: nn.Module, path: Path) -> None:
        x0, _ = self.data.draw(8, torch.Generator().manual_seed(0))
        low_res = self.reduce(x0)
        images = preview_images(self.process, lambda x, t: model(x, t, low_res=low_res), len(x0), x0.shape[1:])
        bicubic = F.interpolate(low_res, x0.shape[2:], mode="bicubic").clamp(-1, 1)
        write_grid(torch.cat([bicubic, images, x0]), path, columns=len(x0))


class ClassifierTask:
    """The noisy classifier: cross entropy of images noised to uniform timesteps (ADM, section 4)."""

    def __init__(self, config: ClassifierConfig, process: Process, data: LabelledImages, batch_size: int) -> None:
        self.config, self.process, self.data, self.batch_size = config, process, data, batch_size
        self.class_names = data.class_names
        self.model = NoisyClassifier(config)

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x0, labels = self.data.draw(self.batch_size, generator)
        t = torch.randint(self.process.schedule.num_timesteps, (len(x0),), generator=generator)
        x_t = self.process.q_sample(x0, t, noise_like(x0, generator))
        logits = self.model(x_t, self.process.network_timesteps[t]).float()
        loss = F.cross_entropy(logits, labels)
        return loss, {"loss": loss.item(), "acc1": top_k_hits(logits, labels, 1).mean().item()}

    def preview(self, model: nn.Module, path: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        x0, labels = self.data.draw(256, generator)
        noise, lines = noise_like(x0, generator), []
        for timestep in range(0, self.process.schedule.num_timesteps, 100):
            t = torch.full((len(x0),), timestep)
            logits = model(self.process.q_sample(x0, t, noise), self.process.network_timesteps[t])
            hits = top_k_hits(logits, labels, 1)
            lines.append(f"t {timestep:4d}  acc1 {hits.mean().item():.3f}")
        path.with_suffix(".txt").write_text("\n".join(lines) + "\n")


class JudgeTask:
    """The judge: cross entropy of augmented clean images, so that it learns shapes and not the renderer's edges."""

    def __init__(self, config: JudgeConfig, data: LabelledImages, batch_size: int) -> None:
        self.config, self.data, self.batch_size = config, data, batch_size
        self.class_names = data.class_names
        self.model = Judge(config)

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        x0, labels = self.data.draw(self.batch_size, generator)
        logits = self.model(augment(x0, generator)).float()
        loss = F.cross_entropy(logits, labels)
        return loss, {"loss": loss.item(), "acc1": top_k_hits(logits, labels, 1).mean().item()}

    def preview(self, model: nn.Module, path: Path) -> None:
        x0, labels = self.data.draw(512, torch.Generator().manual_seed(0))
        hits = top_k_hits(model(x0), labels, 1)
        path.with_suffix(".txt").write_text(f"clean acc1 {hits.mean().item():.4f}\n")
