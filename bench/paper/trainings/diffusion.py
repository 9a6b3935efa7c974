"""Trains the variants and samples from their snapshots; runs resume, and images are kept."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.paper.core import PART, ROOT, Lab
from bench.paper.trainings.variants import PARTS, RUNS, VARIANTS, num_steps, run_config
from engine.engine import Engine
from engine.pipeline import BASE, Pipeline, build_stages
from engine.trajectory import StagePlan
from evaluation.sampling import Sampler, turns
from files.atomic import atomic_write
from models.checkpoints.network_file import build_network
from models.checkpoints.presets import SHAPE_NAMES
from models.networks.unet import UNet
from models.stack import DiffusionNetwork, Stack
from models.stack_plan import PipelineSpec, SamplingDefaults
from runfolder.folder import snapshot_path
from training.session import Request, train
from training.state import read_state

SAMPLER, STEPS = "ddim", 10


@dataclass(frozen=True)
class Trained:
    """A variant's run, and how many of its four parts were trained."""

    variant: str
    seed: int
    parts: int = PARTS

    @property
    def folder(self) -> Path:
        return RUNS / f"{self.variant.replace(' ', '-').replace(',', '')}_{self.seed}"

    def path(self, lab: Lab) -> Path:
        return self.folder / f"{self.parts}_{lab.precision}_{lab.images}.json"

    def pixels(self, lab: Lab) -> Tensor:
        """Images [N, 3, 16, 16], uint8, of all classes in turn; every variant starts from the same noise.

        Images stored by an earlier call are read, not sampled again.
        """
        path = self.path(lab).with_suffix(".npy")
        if not path.exists():
            self._train()
            sampled = self._sampled(lab).numpy()
            with atomic_write(path, durable=True) as file:
                np.save(file, sampled)
        return torch.from_numpy(np.load(path))

    def _train(self) -> None:
        config = run_config(VARIANTS[self.variant], self.seed)
        if not train(config, Request(self.folder, cache=ROOT / "data" / "cache")):
            raise SystemExit(f"{self.folder.name}: stopped; the same command resumes here")

    def _sampled(self, lab: Lab) -> Tensor:
        stack = self._stack()
        sampler = Sampler(Engine(build_stages([stack], lab.rows, precision=lab.precision), lab.rows))
        return sampler.sample(
            Pipeline(stack.pipelines["trained"], stack),
            turns(PART, len(SHAPE_NAMES)) * (lab.images // PART),
            0.0,
            StagePlan(BASE, SAMPLER, STEPS),
        )

    def _stack(self) -> Stack:
        """The averaged network of the snapshot, without guidance."""
        config = run_config(VARIANTS[self.variant], self.seed)
        network = build_network(config.network_config(len(SHAPE_NAMES)))
        assert isinstance(network, UNet)
        step = self.parts * num_steps(VARIANTS[self.variant]) // PARTS
        (average,) = read_state(snapshot_path(self.folder, step))["averages"].values()
        network.load_state_dict(average)
        base = DiffusionNetwork(network.eval(), config.process.config, self.folder.name)
        spec = PipelineSpec("trained", True, True, 0.0, SamplingDefaults(STEPS, SAMPLER), None)
        return Stack(self.folder.name, SHAPE_NAMES, base, None, None, {"trained": spec})
