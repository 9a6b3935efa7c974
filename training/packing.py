"""Packs finished runs into a stack for serving: averaged weights, stack.json and a card."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from files.atomic import whole_folder
from models.checkpoints.network_file import save_network
from models.manifest import Name
from models.networks.precision import DTYPES
from models.stack_plan import MANIFEST, read_stack
from runfolder.folder import CONFIG, INFO, STATE, RunFolderError, read_json, snapshot_path, snapshot_steps
from training.config import RunConfig, read_config
from training.ema import combine, power_name
from training.state import State, read_state
from vocabulary.counts import counted
from vocabulary.precisions import Precision

FILES = {"diffusion": "base", "classifier": "classifier", "upsampler": "upsampler", "judge": "judge"}
STEPS, UPSAMPLING_STEPS, STRENGTH = 25, 20, 0.3  # a pipeline's defaults, equal to the demo stack's
# the paper's scales of conditional and unconditional networks (Table 4)
GUIDANCE_SCALE, UNCONDITIONAL_SCALE = (1.0, 10.0)
CARD = "card.md"


@dataclass(frozen=True)
class Trained:
    """A run to pack."""

    folder: Path
    config: RunConfig
    class_names: tuple[str, ...]
    info: Mapping[str, Any]
    state: State


def read_run(folder: Path) -> Trained:
    """Read a run to pack. Raises: ValueError if the folder is not a run, or has no state yet."""
    config = read_config(read_json(folder / CONFIG))
    info = read_json(folder / INFO)
    if not (folder / STATE).exists():
        raise RunFolderError(f"{folder}: the run has saved no state yet")
    return Trained(folder, config, tuple(info["data"]["class_names"]), info, read_state(folder / STATE))


def add_stack(
    runs: Sequence[Path], name: str, weights: Path, *, dtype: Precision = "fp16", width: float | None = None
) -> Path:
    """Pack runs into the stack `name` in the folder of stacks, atomically; return its folder.

    width: of the power-function average to pack, reconstructed from snapshots; None packs each run's first average.
    Raises: ValueError for runs that do not form a stack, or a taken name; WeightsError; OSError.
    """
    check_name(name)
    target = weights / name
    if target.exists():
        raise ValueError(f"{target}: there is a stack of this name; remove it, or give another --name")
    trained = _by_kind([read_run(each) for each in runs])
    with whole_folder(target) as unfinished:
        for kind, run in trained.items():
            config = run.config.network_config(max(len(run.class_names), 1))
            process = None if kind in ("classifier", "judge") else run.config.process.config
            save_network(
                unfinished / f"{FILES[kind]}.safetensors", weights_of(run, width), config, process, dtype=DTYPES[dtype]
            )
        (unfinished / MANIFEST).write_text(json.dumps(manifest(name, trained), indent=2) + "\n")
        (unfinished / CARD).write_text(card(name, trained))
        read_stack(unfinished)
    return target


def base_of(runs: Sequence[Path]) -> Path:
    """The run among these that trains the base. Raises: ValueError if there is none; the errors of read_run."""
    return _by_kind([read_run(each) for each in runs])["diffusion"].folder


def check_name(name: str) -> None:
    """Check a name. Raises: ValueError if it cannot be the name of a stack and its pipeline."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise ValueError(f"--name {name!r}: a name has letters, digits, '.', '_' and '-', at most 64") from error


def _by_kind(runs: Sequence[Trained]) -> dict[str, Trained]:
    found: dict[str, Trained] = {}
    for run in runs:
        if run.config.kind in found:
            raise ValueError(
                f"{run.folder} and {found[run.config.kind].folder}: both train a {run.config.kind} network"
            )
        found[run.config.kind] = run
    if "diffusion" not in found:
        raise ValueError("none of the runs trains a diffusion network, which a stack needs")
    base = found["diffusion"]
    for kind in ("classifier", "judge"):
        other = found.get(kind)
        if other is not None and base.class_names and other.class_names != base.class_names:
            raise ValueError(
                f"{other.folder}: its classes ({', '.join(other.class_names)}) are not those of {base.folder}"
            )
    return found


def weights_of(run: Trained, width: float | None) -> dict[str, Tensor]:
    """The averaged weights of a run. Raises: ValueError if no average can give the width."""
    averages = run.state["averages"]
    if width is None:
        first: dict[str, Tensor] = next(iter(averages.values()))
        return first
    widths = run.config.averages.power
    if not widths:
        raise ValueError(f"{run.folder}: the run keeps no power-function averages (averages.power)")
    states = [read_state(snapshot_path(run.folder, step)) for step in snapshot_steps(run.folder)]
    states = [*(each for each in states if each["step"] < run.state["step"]), run.state]
    stored = [(state["step"], each) for state in states for each in widths]
    values = [state["averages"][power_name(each)] for state in states for each in widths]
    factors = combine(stored, (run.state["step"], width))
    return {
        key: sum((factor * value[key] for factor, value in zip(factors, values, strict=True)), start=0 * values[0][key])
        for key in values[0]
    }


def manifest(name: str, trained: Mapping[str, Trained]) -> dict[str, Any]:
    """The fields of stack.json."""
    base, classifier, upsampler = (trained.get(each) for each in ("diffusion", "classifier", "upsampler"))
    assert base is not None
    class_names = base.class_names or (classifier.class_names if classifier else ())

    def network(kind: str, run: Trained) -> dict[str, Any]:
        return {"file": f"{FILES[kind]}.safetensors", **asdict(run.config.process.config)}

    def pipeline(*, conditional: bool, scale: float) -> dict[str, Any]:
        made: dict[str, Any] = {
            "conditional": conditional,
            "class_required": conditional and not base.config.objective.label_dropout,
            "guidance_scale": scale if classifier else 0.0,
            "sampling": {"steps": STEPS, "sampler": "ddim", "eta": 1.0},
            "upsampling": None,
        }
        if upsampler is not None:
            made["upsampling"] = {"steps": UPSAMPLING_STEPS, "sampler": "ddpm", "eta": 0.0, "strength": STRENGTH}
        return made

    pipelines = {name: pipeline(conditional=bool(base.class_names), scale=GUIDANCE_SCALE)}
    if not base.class_names:
        pipelines[name]["guidance_scale"] = UNCONDITIONAL_SCALE if classifier else 0.0
    elif base.config.objective.label_dropout:
        pipelines[f"{name}-uncond"] = pipeline(conditional=False, scale=UNCONDITIONAL_SCALE)
    fields: dict[str, Any] = {"classes": list(class_names), "base": network("diffusion", base)}
    if classifier is not None:
        fields["classifier"] = {"file": f"{FILES['classifier']}.safetensors"}
    if upsampler is not None:
        fields["upsampler"] = network("upsampler", upsampler)
    return fields | {"pipelines": pipelines}


def card(name: str, trained: Mapping[str, Trained]) -> str:
    """The stack's card in Markdown: its contents and how it was made."""
    lines = [
        f"# {name}",
        "",
        "| network | steps | batch | images seen | hours | data | machine |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, run in trained.items():
        last, step, batch = run.info["starts"][-1], run.state["step"], run.config.optimiser.batch_size
        data = f"{counted(run.info['data']['images'], 'image')}, {counted(len(run.class_names), 'class')}"
        machine = f"{last['processor']}, {counted(last['processes'], 'process')}, {last['precision']}"
        hours = f"{run.state['seconds'] / 3600:.1f}"
        lines.append(f"| {' | '.join([FILES[kind], str(step), str(batch), str(step * batch), hours, data, machine])} |")
    lines += ["", "Each network was trained by `adm train` with this configuration:", ""]
    for kind, run in trained.items():
        fields = run.config.model_dump(mode="json")
        lines += [f"## {FILES[kind]}", "", "```json", json.dumps(fields, indent=1), "```", ""]
    return "\n".join(lines)
