"""A small class-conditional GAN, with which row 6 compares diffusion: hinge loss, spectral norm and a projection
discriminator (Miyato & Koyama 2018), as BigGAN has them, with transposed convolutions as in DCGAN.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.flop_counter import FlopCounterMode

from bench.paper.core import PART, ROOT, SMALL_SIZE, Lab, grey
from bench.paper.trainings.variants import BUDGET, PARTS, RENDERS, RUNS
from datasets.shapes import render_set
from diffusion.pixels import from_uint8, to_uint8
from evaluation.sampling import turns
from files.atomic import atomic_write
from models.checkpoints.presets import SHAPE_NAMES
from training.data import TRAINING_SEED
from training.ema import Averages

LATENT, WIDTH, BATCH, SLOPE = 32, 64, 16, 0.2
GENERATOR_RATE, DISCRIMINATOR_RATE, AVERAGE = 5e-4, 1e-3, 0.999
SAMPLE_SEED = 3


class Generator(nn.Module):
    """A latent [N, 32] and class labels [N] to grey images [N, 3, 16, 16] in [-1, 1].

    Its norms use the statistics of the batch, also in sampling, so that an average of weights needs no others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(SHAPE_NAMES), LATENT)
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(2 * LATENT, WIDTH, 4, bias=False),
            nn.BatchNorm2d(WIDTH, track_running_stats=False),
            nn.ReLU(),
            nn.ConvTranspose2d(WIDTH, WIDTH // 2, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH // 2, track_running_stats=False),
            nn.ReLU(),
            nn.ConvTranspose2d(WIDTH // 2, WIDTH // 4, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH // 4, track_running_stats=False),
            nn.ReLU(),
            nn.Conv2d(WIDTH // 4, 1, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, latent: Tensor, class_labels: Tensor) -> Tensor:
        joined = torch.cat([latent, self.embedding(class_labels)], dim=1)
        images: Tensor = self.layers(joined[:, :, None, None])
        return images.expand(-1, 3, -1, -1)


class Discriminator(nn.Module):
    """Images and class labels to logits [N]: higher for real ones."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, WIDTH // 4, WIDTH // 2, WIDTH)
        layers: list[nn.Module] = []
        for stride, before, after in zip((1, 2, 2), widths, widths[1:], strict=False):
            conv = nn.Conv2d(before, after, 3 if stride == 1 else 4, stride=stride, padding=1)
            layers += [spectral_norm(conv), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers)
        self.head = spectral_norm(nn.Linear(WIDTH, 1))
        self.embedding = spectral_norm(nn.Embedding(len(SHAPE_NAMES), WIDTH))

    def forward(self, images: Tensor, class_labels: Tensor) -> Tensor:
        features = self.layers(images).sum(dim=(2, 3))
        logits: Tensor = self.head(features)[:, 0] + (features * self.embedding(class_labels)).sum(dim=1)
        return logits


class GanRun:
    """A training run, whose draws are functions of the seed and the step; a resumed run equals an uninterrupted one.

    renders: training images, the same as the variants'.
    """

    def __init__(self, seed: int, renders: int = RENDERS) -> None:
        torch.manual_seed(seed)
        self.seed, self.step = seed, 0
        self.generator, self.discriminator = Generator(), Discriminator()
        betas = (0.0, 0.9)
        self.optimisers = {
            "generator": torch.optim.Adam(self.generator.parameters(), GENERATOR_RATE, betas),
            "discriminator": torch.optim.Adam(self.discriminator.parameters(), DISCRIMINATOR_RATE, betas),
        }
        self.averages = Averages(dict(self.generator.named_parameters()), (AVERAGE,), ())
        pixels, self.class_labels = render_set(renders, TRAINING_SEED, SMALL_SIZE, cache=ROOT / "data" / "cache")
        self.images = from_uint8(grey(pixels))

    def train(self, step: int) -> None:
        """Train up to a step."""
        while self.step < step:
            self.take_step()

    def take_step(self) -> None:
        """One step of the discriminator, then one of the generator."""
        draws = torch.Generator().manual_seed(self.seed << 32 | self.step)
        index = torch.randint(len(self.images), (BATCH,), generator=draws)
        real, labels = self.images[index], self.class_labels[index]
        fake = self.generator(torch.randn(BATCH, LATENT, generator=draws), labels)
        on_real, on_fake = self.discriminator(real, labels), self.discriminator(fake.detach(), labels)
        self._descend("discriminator", F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean())
        self._descend("generator", -self.discriminator(fake, labels).mean())
        self.step += 1
        self.averages.update(dict(self.generator.named_parameters()), self.step)

    def _descend(self, name: str, loss: Tensor) -> None:
        optimiser = self.optimisers[name]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def state(self) -> dict[str, Any]:
        parts = {name: each.state_dict() for name, each in self.optimisers.items()}
        networks = {"generator": self.generator.state_dict(), "discriminator": self.discriminator.state_dict()}
        return {"step": self.step, "averages": self.averages.values, "networks": networks, "optimisers": parts}

    def load(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.averages.load(state["averages"])
        self.generator.load_state_dict(state["networks"]["generator"])
        self.discriminator.load_state_dict(state["networks"]["discriminator"])
        for name, each in self.optimisers.items():
            each.load_state_dict(state["optimisers"][name])

    @torch.no_grad()
    def sample(self, count: int, truncation: float) -> Tensor:
        """Images [count, 3, 16, 16], uint8, of classes in turn, from the averaged generator.

        truncation: values of the latent beyond it are drawn again (Brock et al. 2018, section 3.1); inf: none.
        """
        draws = torch.Generator().manual_seed(SAMPLE_SEED)
        latent = torch.randn(count, LATENT, generator=draws)
        while bool((beyond := latent.abs() > truncation).any()):
            latent[beyond] = torch.randn(int(beyond.sum()), generator=draws)
        averaged = Generator()
        averaged.load_state_dict(self.averages.values[self.averages.first])
        labels = torch.tensor(turns(PART, len(SHAPE_NAMES)) * (count // PART))
        return to_uint8(averaged(latent, labels))


@cache
def step_flops() -> int:
    """FLOPs of a step, as those of a diffusion network are counted."""
    run = GanRun(0, renders=BATCH)
    with FlopCounterMode(display=False) as counter:
        run.take_step()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class TrainedGan:
    """A GAN's run, and how many of its four parts were trained."""

    seed: int
    parts: int = PARTS
    truncation: float = float("inf")

    @property
    def folder(self) -> Path:
        return RUNS / f"gan_{self.seed}"

    def path(self, lab: Lab) -> Path:
        return self.folder / f"{self.parts}_{self.truncation:g}_{lab.images}.json"

    def pixels(self, lab: Lab) -> Tensor:
        """Images like those of `GanRun.sample`; a run's states are kept, one for each part."""
        run = GanRun(self.seed)
        steps = round(BUDGET / step_flops() / PARTS)
        kept = max((part for part in range(1, self.parts + 1) if self._state(part).exists()), default=0)
        if kept:
            run.load(torch.load(self._state(kept), weights_only=True))
            assert run.step == kept * steps, f"{self._state(kept)} is of another budget; remove it"
        for part in range(kept + 1, self.parts + 1):
            run.train(part * steps)
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._state(part), durable=True) as file:
                torch.save(run.state(), file)
            print(f"{self.folder.name}: {part} of {PARTS} parts", flush=True)
        return run.sample(lab.images, self.truncation)

    def _state(self, part: int) -> Path:
        return self.folder / f"{part}.pt"
