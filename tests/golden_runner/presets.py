"""Cases of presets: the published checkpoints' table (presets.json) and each one's keys (NAME.keys.json)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoints.inspection import inspect_shapes
from models.checkpoints.network_file import build_network
from models.checkpoints.presets import OFFICIAL_PIPELINES, PRESETS, Preset
from models.networks.config import ClassifierConfig, UNetConfig
from tests.golden_runner.case import CaseError, Fields
from tests.golden_runner.networks import encoder_arguments

Config = UNetConfig | ClassifierConfig
KEYS_SUFFIX = ".keys.json"
ABOUT = {"about", "reference_commit", "torch", "gflops_definition", "checkpoint_dtype_note", "kind"}
MODEL_CLASSES = {"diffusion": "UNetModel", "upsampler": "SuperResModel", "classifier": "EncoderUNetModel"}


def is_presets(path: Path, body: Any) -> bool:
    """Return whether a JSON file is a case of this kind, whatever its folder is called."""
    return path.name.endswith(KEYS_SUFFIX) or (isinstance(body, dict) and "presets" in body)


def problems(path: Path, body: Any) -> list[str]:
    """The faults of a case, one line each."""
    if isinstance(body, list):
        return _key_table(path.name.removesuffix(KEYS_SUFFIX), body)
    if not isinstance(body, dict) or body.keys() - ABOUT != {"presets"}:
        raise CaseError(f"unknown field of presets: {sorted(set(body) - ABOUT - {'presets'})}")
    missing = [f"{name}: is not in the case" for name in PRESETS.keys() - body["presets"].keys()]
    return missing + [line for name, entry in body["presets"].items() for line in _preset(path.parent, name, entry)]


def _key_table(name: str, want: list[Any]) -> list[str]:
    """A published checkpoint's keys against its preset's network; another ADM checkpoint's against the inferred one."""
    if name in PRESETS:
        config = PRESETS[name].config
    else:
        config = inspect_shapes({key: tuple(shape) for key, shape, _ in want}).config
    return [f"{name}: {line}" for line in _table_differs(config, want)]


def _meta(config: Config) -> nn.Module:
    with torch.device("meta"):
        return build_network(config)


def _table_differs(config: Config, want: list[Any]) -> list[str]:
    state = _meta(config).state_dict()
    got = [[key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()]
    if len(got) != len(want):
        return [f"{len(got)} keys, expected {len(want)}"]
    return [f"{a} where {b} is expected" for a, b in zip(got, want, strict=True) if a != b]


def _preset(folder: Path, name: str, entry: dict[str, Any]) -> list[str]:
    if name not in PRESETS:
        return [f"{name}: unknown preset"]
    preset, fields = PRESETS[name], Fields(entry, name)
    got = _facts(preset) | _network_facts(preset, fields)
    lines = [
        f"{name}: {key} is {value!r}, expected {fields.take(key)!r}"
        for key, value in got.items()
        if fields.take(key) != value
    ]
    lines += _sampling_differs(preset, fields)
    table = folder / fields.need("keys_file")
    if table.exists():
        lines += [f"{name}: {line}" for line in _table_differs(preset.config, json.loads(table.read_text()))]
    fields.take("note")
    fields.finish()
    return lines


def _facts(preset: Preset) -> dict[str, Any]:
    """The table's entries for flags, files and figures, from our preset."""
    flags, full, facts = dict(preset.flags), preset.all_flags, dict[str, Any]()
    if preset.role == "classifier":
        del flags["image_size"], full["image_size"]
        facts["classifier_flags"] = full
        users = [(each.name, each.sampling) for each in PRESETS.values() if each.sampling]
        facts["guides"] = [
            {"diffusion": user, "classifier_scale": sampling.guidance_scale}
            for user, sampling in users
            if sampling.classifier == preset.name
        ]
    else:
        facts["all_flags"] = full
    if preset.low_res_size:
        facts["low_res_size"] = preset.low_res_size
    return facts | {
        "file": preset.file,
        "role": preset.role,
        "readme_flags": flags,
        "image_size": preset.config.image_size,
        "param_count": preset.param_count,
        "checkpoint_dtype": "float32",
        "checkpoint_bytes_of_parameters": 4 * preset.param_count,
        "model_class": MODEL_CLASSES[preset.role],
        "script": _script(preset),
    }


def _script(preset: Preset) -> str:
    if preset.role == "upsampler":
        return "super_res_sample.py"
    guided = preset.role == "classifier" or (preset.sampling is not None and preset.sampling.classifier is not None)
    return "classifier_sample.py" if guided else "image_sample.py"


def _network_facts(preset: Preset, fields: Fields) -> dict[str, Any]:
    """The table's entries for the network, from one built on the meta device; checks the constructor's arguments."""
    config = preset.config
    if (official := _official_config(fields)) != config:
        raise CaseError(f"{preset.name}: the constructor arguments make {official}, the preset {config}")
    network = _meta(config)  # stays in training mode: in evaluation small batches are padded
    size = config.image_size
    extra = {"low_res": torch.empty(1, 3, 1, 1, device="meta")} if preset.role == "upsampler" else {}
    labels = [torch.empty(1, dtype=torch.long, device="meta")] if getattr(config, "num_classes", None) else []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        x = torch.empty(1, 3, size, size, device="meta")
        output = network(x, torch.empty(1, device="meta"), *labels, **extra)
    counted = sum(each.numel() for each in network.parameters())
    if counted != preset.param_count:
        raise CaseError(f"{preset.name}: the network has {counted} parameters, the preset {preset.param_count}")
    return {
        "tensor_count": len(network.state_dict()),
        "output_shape_batch1": list(output.shape),
        "channels_per_level": [config.width(level) for level in range(len(config.channel_mult))],
        "gflops_forward_batch1": round(counter.get_total_flops() / 1e9, 3),
    }


def _official_config(fields: Fields) -> Config:
    given = Fields({**fields.take("constructor_defaults_used", {}), **fields.need("constructor_kwargs")}, "arguments")
    arguments, kind = encoder_arguments(given), fields.take("model_class")
    upsample_heads = given.take("num_heads_upsample", -1)
    config: Config
    if kind == "EncoderUNetModel":
        config = ClassifierConfig(**arguments, pool=given.need("pool"))
    else:
        super_res = kind == "SuperResModel"
        arguments["in_channels"] *= 1 + super_res
        config = UNetConfig(
            **arguments, num_classes=given.need("num_classes"), num_heads_upsample=upsample_heads, super_res=super_res
        )
    given.finish()
    return config


def _sampling_differs(preset: Preset, fields: Fields) -> list[str]:
    lines = []
    published = [
        {key: value for key, value in entry.items() if key != "note"} for entry in fields.need("published_metrics")
    ]
    if published != [dataclasses.asdict(each) for each in preset.published]:
        lines.append(f"{preset.name}: published_metrics is {preset.published}, expected {published}")
    want, sampling = Fields(fields.take("sampling") or {}, "sampling"), preset.sampling
    if sampling is None:
        want.finish()
        return lines
    got: dict[str, Any] = {"timestep_respacing": str(sampling.steps), "use_ddim": sampling.sampler == "ddim"}
    got["clip_denoised"] = True  # the engine's tables clamp
    if sampling.classifier is not None:
        got |= {"classifier": sampling.classifier, "classifier_scale": sampling.guidance_scale}
    if sampling.best_steps is not None:
        got["timestep_respacing_best"] = str(sampling.best_steps)
    if fast := sampling.fast:
        kind = "ddim" if fast.sampler == "ddim" else ""
        got["fast_example"] = {
            "timestep_respacing": f"{kind}{fast.steps}",
            "use_ddim": fast.sampler == "ddim",
            "classifier_scale": fast.guidance_scale,
            "classifier_use_fp16": True,
        }
    if sampling.classifier and (depth := PRESETS[sampling.classifier].flags.get("classifier_depth")):
        got["classifier_flags"] = {"classifier_depth": depth}
    for note in ("batch_size", "unguided", "note", "base_samples"):
        want.take(note)
    lines += [
        f"{preset.name}: sampling {key} is {value!r}, expected {want.take(key)!r}"
        for key, value in got.items()
        if want.take(key) != value
    ]
    want.finish()
    if preset.role != "classifier" and not any(preset.name in each.files for each in OFFICIAL_PIPELINES.values()):
        lines.append(f"{preset.name}: is in no pipeline")
    return lines
