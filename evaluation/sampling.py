"""Images by the hundred, in process, through the same engine that serves requests."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.engine import Engine
from engine.pipeline import Pipeline
from engine.trajectory import StagePlan


class Sampler:
    """Runs pipelines on one engine; image i of a call draws its noise from (seed, i)."""

    def __init__(self, engine: Engine, on_step: Callable[[int], None] = lambda rows: None) -> None:
        self.engine, self._on_step = engine, on_step

    def sample(
        self,
        pipeline: Pipeline,
        class_labels: Sequence[int | None],
        guidance_scale: float,
        base: StagePlan,
        upsample: StagePlan | None = None,
        *,
        seed: int = 0,
    ) -> Tensor:
        """One image for each label: [N, 3, H, W] uint8; without an upsampling plan the base stage's images.

        Raises: the exception of a step that could not be computed.
        """
        for index, label in enumerate(class_labels):
            scale = 0.0 if label is None else guidance_scale
            self.engine.add(pipeline.image("sample", index, seed, label, scale, base, upsample))
        images: dict[int, Tensor] = {}
        while (report := self.engine.step()) is not None:
            for error in report.failed.values():
                raise error
            images |= {done.request.index: done.pixels for done in report.finished}
            self._on_step(len(report.moved))
        return torch.stack([images[index] for index in range(len(class_labels))])
