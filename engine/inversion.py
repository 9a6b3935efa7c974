"""DDIM inversion: encodes images to latents and decodes them, for reconstruction and interpolation.

`Inverter` runs on an engine of its own, in this process; `worker.job_plans` plans the same work for a serving engine.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.latents import great_circle
from engine.engine import Engine, run_to_end
from engine.pipeline import BASE, Pipeline
from engine.trajectory import FromLatent, FromPicture, Guidance, ImageRequest, StagePlan, StagePlans
from vocabulary.sampling import Direction


def reconstruction_error(pixels: Tensor, picture: Tensor) -> dict[str, float | None]:
    """The errors of pixels against their original, both 0..255: mean absolute error, and PSNR in dB, None if equal."""
    difference = pixels.cpu().double() - picture.cpu().double()
    square = float(difference.square().mean())
    return {
        "mean_absolute": round(float(difference.abs().mean()), 4),
        "psnr": round(10 * math.log10(255**2 / square), 2) if square else None,
    }


def as_frames(images: Sequence[ImageRequest]) -> list[ImageRequest]:
    """Make all images draw the same noise, so that only their latents differ, at any eta and in the upsampler.

    `between` does not do this, because a frame that resumes from a checkpoint needs the same noise but gets no latent.
    """
    return [replace(each, noise_index=0) for each in images]


def between(frames: Sequence[ImageRequest], first: Tensor, last: Tensor) -> list[ImageRequest]:
    """Start the frames at even distances on the great circle between two latents, both ends included.

    Computed on the host, because a latent from a checkpoint is there, and another device would round differently.
    """
    latents = great_circle(first.cpu(), last.cpu(), len(frames))
    return [replace(each, start=FromLatent(latent)) for each, latent in zip(frames, latents, strict=True)]


@dataclass(frozen=True)
class Inverter:
    """Encodes and decodes by DDIM on one pipeline, with eta 0 and without clipping.

    class_label None is "no class". Encoding is never guided. Decoding is guided by guidance_scale; above 0 it no longer
    reconstructs the picture.
    Source: Song et al. 2021, sections 4.3 and 5.4.
    """

    engine: Engine
    pipeline: Pipeline
    steps: int = 50
    class_label: int | None = None
    on_step: Callable[[int], None] = lambda rows: None

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, H, W], uint8 and of the base stage's size, to latents [N, 3, H, W], float32."""
        requests = [self._image(index, FromPicture(each), decode=False) for index, each in enumerate(pixels)]
        return torch.stack([each.x for each in run_to_end(self.engine, requests, self.on_step)])

    def decode(self, latents: Tensor, guidance_scale: float = 0.0) -> Tensor:
        """Latents [N, 3, H, W] to pixels, uint8."""
        requests = [
            self._image(index, FromLatent(each), encode=False, guidance_scale=guidance_scale)
            for index, each in enumerate(latents)
        ]
        return torch.stack([each.pixels for each in run_to_end(self.engine, requests, self.on_step)])

    def reconstruct(self, pixels: Tensor, guidance_scale: float = 0.0) -> Tensor:
        """Pixels [N, 3, H, W] through their latents to pixels."""
        return self.decode(self.encode(pixels), guidance_scale)

    def interpolate(self, first: Tensor, last: Tensor, frames: int, guidance_scale: float = 0.0) -> Tensor:
        """Frames [frames, 3, H, W] between two pictures [3, H, W], both included: spherical between their latents."""
        start, end = self.encode(torch.stack([first, last]))
        images = [self._image(index, None, encode=False, guidance_scale=guidance_scale) for index in range(frames)]
        requests = between(as_frames(images), start, end)
        return torch.stack([each.pixels for each in run_to_end(self.engine, requests, self.on_step)])

    def _image(
        self,
        index: int,
        start: FromPicture | FromLatent | None,
        *,
        encode: bool = True,
        decode: bool = True,
        guidance_scale: float = 0.0,
    ) -> ImageRequest:
        decoding = StagePlan(BASE, "ddim", self.steps, time_grid="even", thresholding="none")
        encoding = replace(decoding, direction=Direction.ENCODE)
        return self.pipeline.image(
            "inversion",
            index,
            0,
            Guidance(self.class_label, guidance_scale),
            StagePlans(decoding if decode else None, encode=encoding if encode else None),
            start=start,
        )
