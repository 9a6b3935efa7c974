"""From images to the latents that DDIM makes them of, and back: encoding, reconstruction, interpolation.

Everything runs on an engine of one's own, in process; `worker.plans` asks for the same of the one that serves.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.latents import way
from diffusion.solvers import ENCODE
from engine.engine import Engine
from engine.pipeline import BASE, Pipeline
from engine.steps import Finished
from engine.trajectory import FromLatent, FromPicture, ImageRequest, StagePlan


def run_to_end(
    engine: Engine, requests: Sequence[ImageRequest], on_step: Callable[[int], None] = lambda rows: None
) -> list[Finished]:
    """Run images on an engine that has no others; in the order of the requests.

    on_step is told how many rows each step moved. Raises: the exception of a step that could not be computed.
    """
    for request in requests:
        engine.add(request)
    done: dict[int, Finished] = {}
    while (report := engine.step()) is not None:
        for error in report.failed.values():
            raise error
        done |= {each.request.index: each for each in report.finished}
        on_step(len(report.moved))
    return [done[request.index] for request in requests]


def reconstruction_error(pixels: Tensor, picture: Tensor) -> dict[str, float | None]:
    """How far pixels are from what they were made of, both 0..255: in 255ths, and in dB, None where they agree."""
    difference = pixels.cpu().double() - picture.cpu().double()
    square = float(difference.square().mean())
    return {
        "mean_absolute": round(float(difference.abs().mean()), 4),
        "psnr": round(10 * math.log10(255**2 / square), 2) if square else None,
    }


@dataclass(frozen=True)
class Inverter:
    """DDIM there and back on one pipeline, eta 0, nothing clipped.

    class_label None is "no class". An encoding is never guided; a decoding is by guidance_scale, and then no longer
    leads back to the picture.
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
        return self.decode(torch.stack(way(start, end, frames)), guidance_scale)

    def _image(
        self,
        index: int,
        start: FromPicture | FromLatent,
        *,
        encode: bool = True,
        decode: bool = True,
        guidance_scale: float = 0.0,
    ) -> ImageRequest:
        back = StagePlan(BASE, "ddim", self.steps, time_grid="even", thresholding="none")
        there = replace(back, sampler=ENCODE)
        return self.pipeline.image(
            "inversion",
            index,
            0,
            self.class_label,
            guidance_scale,
            back if decode else None,
            None,
            encode=there if encode else None,
            start=start,
        )
