"""Starts a run from files of the official training scripts: modelNNNNNN.pt, ema_RATE_NNNNNN.pt and optNNNNNN.pt.

Source: guided-diffusion (MIT), train_util.py and fp16_util.py: in float16 training the optimiser has two parameters,
all vectors and scalars flattened to one and all matrices to the other, in the order of the network's parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.file_form import WeightsError, form_of, shown
from models.checkpoints.network_file import check_state
from models.checkpoints.tensor_file import read_tensors
from models.checkpoints.torch_file import read_torch
from training.loop import Run
from vocabulary.counts import counted

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Beginning:
    """Files from which a new run starts; without files it starts from random weights.

    averages: the file of each of the run's averages, in order; those without a file start from the weights.
    """

    weights: Path | None = None
    averages: tuple[Path, ...] = ()
    optimiser: Path | None = None


RANDOM_WEIGHTS = Beginning()


def begin_at(run: Run, beginning: Beginning) -> None:
    """Load the files' values into a run before its first step. Raises: WeightsError, which names the file."""
    if beginning.weights is None:
        if beginning.averages or beginning.optimiser:
            raise WeightsError("--weights", "is missing: --ema and --optimiser need the weights that they belong to")
        return
    weights = _read(run, beginning.weights)
    run.set_weights(weights)
    names = list(run.averages.values)
    if len(beginning.averages) > len(names):
        raise WeightsError(
            "--ema", f"names {counted(len(beginning.averages), 'file')} for the run's {counted(len(names), 'average')}"
        )
    files = dict(zip(names, beginning.averages, strict=False))
    run.averages.load({name: _read(run, files[name]) if name in files else weights for name in names})
    if beginning.optimiser is not None:
        _load_moments(run, beginning.optimiser)


def _read(run: Run, path: Path) -> dict[str, Tensor]:
    tensors = {key: each.float() for key, each in read_tensors(path).items()}
    check_state(run.network, tensors, path.name)
    return tensors


def _load_moments(run: Run, path: Path) -> None:
    stored = read_torch(path, form_of(path))
    try:
        state: Mapping[int, Mapping[str, Any]] = stored["state"]  # type: ignore[index]  # any content of the file
        own = run.optimiser.state_dict()
        moments = _of_parameters(list(run.parameters.values()), state)
        steps = {int(each["step"]) for each in state.values()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(shown(path), f"is no state of AdamW for this network ({error})") from error
    for index, values in enumerate(moments):
        own["state"][index] = {"step": torch.tensor(float(max(steps))), **values}
    run.optimiser.load_state_dict(own)


def _of_parameters(parameters: list[Tensor], state: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Tensor]]:
    """Each parameter's moments. Raises: ValueError if they have other shapes."""
    if len(state) == len(parameters):
        moments = [{name: state[index][name] for name in MOMENTS} for index in range(len(parameters))]
    else:
        moments = _unflattened(parameters, state)
    for parameter, values in zip(parameters, moments, strict=True):
        if any(each.shape != parameter.shape for each in values.values()):
            raise ValueError("its moments have other shapes than the network's weights")
    return [{name: each.float().clone() for name, each in values.items()} for values in moments]


def _unflattened(parameters: list[Tensor], state: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Tensor]]:
    groups = [[each for each in parameters if (each.ndim > 1) == matrices] for matrices in (False, True)]
    if len(state) != len(groups):
        raise ValueError(f"it has {counted(len(state), 'parameter')}, the network {len(parameters)}")
    parts: list[dict[str, Any]] = []
    for index, group in enumerate(groups):
        sizes = [each.numel() for each in group]
        split = {name: state[index][name].flatten().split(sizes) for name in MOMENTS}
        parts.append({name: iter(each) for name, each in split.items()})
    return [
        {name: next(parts[parameter.ndim > 1][name]).view(parameter.shape) for name in MOMENTS}
        for parameter in parameters
    ]
