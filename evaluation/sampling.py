"""Makes hundreds of images in process, with the engine that serves requests."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.engine import Engine, run_to_end
from engine.pipeline import Pipeline
from engine.trajectory import Guidance, StagePlan, StagePlans


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
        entropy_scaled: bool = False,
    ) -> Tensor:
        """One image for each label: [N, 3, H, W], uint8; without an upsampling plan, those of the base stage.

        Raises: the exception of a step that could not be computed.
        """
        requests = [
            pipeline.image(
                "sample",
                index,
                seed,
                Guidance(label, 0.0 if label is None else guidance_scale, entropy_scaled=entropy_scaled),
                StagePlans(base, upsample),
            )
            for index, label in enumerate(class_labels)
        ]
        return torch.stack([each.pixels for each in run_to_end(self.engine, requests, self._on_step)])


def turns(count: int, classes: int) -> list[int]:
    """Labels in turn; the counts of classes differ by at most one."""
    return [index % classes for index in range(count)]
