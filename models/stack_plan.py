"""The plan of a stack that is not loaded: its files and pipelines, from its stack.json or the official presets."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from models.checkpoints.network_file import WeightsError, read_config, read_process
from models.checkpoints.presets import OFFICIAL_PIPELINES, PRESETS, OfficialPipeline
from models.checkpoints.tensor_file import shown
from models.manifest import check_values
from models.networks.config import ClassifierConfig, DiffusionConfig, UNetConfig
from vocabulary.counts import counted
from vocabulary.sampling import GUIDANCE_SCHEDULES, GuidanceSchedule, TimeGrid

MANIFEST = "stack.json"
STACK_FIELDS = ("classes", "base", "classifier", "upsampler", "pipelines")
PROCESS_FIELDS = tuple(each.name for each in fields(DiffusionConfig))
DIFFUSION_FIELDS = ("file", *PROCESS_FIELDS)
CLASSIFIER_FIELDS = ("file",)
PIPELINE_FIELDS = (
    *("conditional", "class_required", "guidance_scale", "guidance_schedule", "eps_scale"),
    *("sampling", "upsampling", "time_grids"),
)
EPS_SCALE_MIN, EPS_SCALE_MAX = 0.9, 1.1
SAMPLING_FIELDS = ("steps", "sampler", "eta", "strength")


@dataclass(frozen=True)
class SamplingDefaults:
    """A stage's defaults for requests; strength, only for an upsampler, has the meaning of `StagePlan.strength`."""

    steps: int
    sampler: str
    eta: float = 0.0
    strength: float = 1.0


@dataclass(frozen=True)
class PipelineSpec:
    """One pipeline of a stack. conditional False: the network always gets its "no class" row."""

    name: str
    conditional: bool
    class_required: bool
    guidance_scale: float
    sampling: SamplingDefaults
    upsampling: SamplingDefaults | None
    guidance_schedule: GuidanceSchedule = "constant"
    eps_scale: float = 1.0  # factor on the noise that the base predicts
    time_grids: Mapping[str, TimeGrid] = field(default_factory=dict)  # of the base's samplers, in place of their own


@dataclass(frozen=True)
class NetworkFile:
    """A network of a stack on disk.

    config: of the network, from the file, or from the preset if the file has none. process: None for a classifier.
    """

    path: Path
    config: UNetConfig | ClassifierConfig
    process: DiffusionConfig | None = None


@dataclass(frozen=True)
class StackPlan:
    """A stack before it is loaded: its files and pipelines."""

    name: str
    class_names: tuple[str, ...]
    base: NetworkFile
    classifier: NetworkFile | None
    upsampler: NetworkFile | None
    pipelines: Mapping[str, PipelineSpec]

    @property
    def files(self) -> tuple[NetworkFile, ...]:
        return tuple(filter(None, (self.base, self.classifier, self.upsampler)))

    def only(self, names: Collection[str]) -> "StackPlan":
        """The stack with only these pipelines, and without its upsampler if none of them needs it."""
        kept = {name: spec for name, spec in self.pipelines.items() if name in names}
        upsampler = self.upsampler if any(spec.upsampling for spec in kept.values()) else None
        return replace(self, pipelines=kept, upsampler=upsampler)


def read_stack(folder: Path) -> StackPlan:
    """Read the plan of a stack from its folder's stack.json and the headers of its files. Raises: WeightsError."""
    manifest = _read_manifest(folder / MANIFEST)
    try:
        _check_fields("the stack", manifest, STACK_FIELDS)
        check_values(manifest)
        return StackPlan(
            name=folder.name,
            class_names=tuple(manifest["classes"]),
            base=_diffusion(folder, manifest["base"], super_res=False),
            classifier=_classifier(folder, manifest["classifier"]) if "classifier" in manifest else None,
            upsampler=_diffusion(folder, manifest["upsampler"], super_res=True) if "upsampler" in manifest else None,
            pipelines={name: _pipeline(name, entry) for name, entry in manifest["pipelines"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{folder.name}/{MANIFEST}", f"a field is missing, unknown or wrong: {error}") from error


def official_stacks(folder: Path) -> list[StackPlan]:
    """The stacks of the official checkpoints, one per base network, even if its files are not in the folder.

    A file is found by its preset's name, NAME.safetensors (as `adm models convert` writes it) before NAME.pt.
    """
    bases = dict.fromkeys(pipeline.base for pipeline in OFFICIAL_PIPELINES.values())
    return [_official_stack(folder, base) for base in bases]


def _official_stack(folder: Path, base: str) -> StackPlan:
    made = [pipeline for pipeline in OFFICIAL_PIPELINES.values() if pipeline.base == base]
    classifier, upsampler = made[0].sampling.classifier, next((each.upsampler for each in made if each.upsampler), None)
    return StackPlan(
        name=base,
        class_names=PRESETS[classifier or base].class_names,
        base=_official_file(folder, base),
        classifier=None if classifier is None else _official_file(folder, classifier),
        upsampler=None if upsampler is None else _official_file(folder, upsampler),
        pipelines={pipeline.name: _official_pipeline(pipeline) for pipeline in made},
    )


def _official_file(folder: Path, name: str) -> NetworkFile:
    preset, converted = PRESETS[name], folder / f"{name}.safetensors"
    path = converted if converted.exists() else folder / preset.file
    return NetworkFile(path, preset.config, preset.process)


def _official_pipeline(pipeline: OfficialPipeline) -> PipelineSpec:
    sampling, conditional = pipeline.sampling, bool(PRESETS[pipeline.base].flags["class_cond"])
    upsampling = None
    if pipeline.upsampler and (given := PRESETS[pipeline.upsampler].sampling):
        upsampling = SamplingDefaults(given.steps, given.sampler)
    defaults = SamplingDefaults(sampling.steps, sampling.sampler)
    return PipelineSpec(pipeline.name, conditional, conditional, sampling.guidance_scale, defaults, upsampling)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes(), object_pairs_hook=_without_namesakes)
    except OSError as error:
        raise WeightsError(f"{path}", "there is no such stack") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(shown(path), f"is not JSON ({error})") from error
    if not isinstance(manifest, dict):
        raise WeightsError(shown(path), "is not a JSON object")
    return manifest


def _without_namesakes(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # parsers differ in which of the two they use
        repeated = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        raise ValueError(f"a name is given twice in one object: {', '.join(repeated)}")
    return found


def _check_fields(where: str, entry: Mapping[str, Any], known: Collection[str]) -> None:
    # Unknown fields are refused: a dropped flag may be a needed one, and wrong flags make noise without an error.
    for name in sorted(entry.keys() - set(known)):
        raise ValueError(f"{where} has an unknown field {name!r}; known are {', '.join(known)}")


def _diffusion(folder: Path, entry: dict[str, Any], *, super_res: bool) -> NetworkFile:
    _check_fields("the upsampler" if super_res else "the base", entry, DIFFUSION_FIELDS)
    path, given = folder / entry["file"], {name: entry[name] for name in PROCESS_FIELDS if name in entry}
    process = _process(path, given)
    config = read_config(path)
    if not isinstance(config, UNetConfig) or config.super_res != super_res:
        raise WeightsError(shown(path), f"contains another kind of network than {MANIFEST} states")
    joined = 2 if super_res else 1  # the low-resolution image is concatenated to x along the channels
    if config.in_channels != 3 * joined or config.out_channels not in (3, 6):
        needed = f"must have {3 * joined} input channels, and 3 output channels, or 6 with a learned variance"
        raise WeightsError(shown(path), needed)
    if process.sigma_small and config.out_channels == 6:
        raise ValueError("sigma_small is for networks of 3 output channels; this one learned its variance")
    return NetworkFile(path, config, process)


def _process(path: Path, given: Mapping[str, Any]) -> DiffusionConfig:
    """The diffusion process that a stack or a network's file states; both must agree. Raises: TypeError; ValueError."""
    stated = read_process(path) if path.is_file() else None
    if stated is None:
        for name in ("schedule", "num_timesteps"):
            if name not in given:
                raise ValueError(f"{name} is missing here and in {path.name}")
        return DiffusionConfig(**given)
    for name, value in asdict(stated).items():
        if name in given and given[name] != value:
            raise ValueError(f"{name} is {given[name]!r} here and {value!r} in {path.name}")
    return stated


def _classifier(folder: Path, entry: dict[str, Any]) -> NetworkFile:
    _check_fields("the classifier", entry, CLASSIFIER_FIELDS)
    path = folder / entry["file"]
    config = read_config(path)
    if not isinstance(config, ClassifierConfig):
        raise WeightsError(shown(path), f"contains another kind of network than {MANIFEST} states")
    return NetworkFile(path, config)


def _pipeline(name: str, entry: dict[str, Any]) -> PipelineSpec:
    _check_fields(f"the pipeline {name!r}", entry, PIPELINE_FIELDS)
    upsampling = entry["upsampling"]
    for each in ("sampling", "upsampling"):
        _check_fields(f"the pipeline {name!r}, {each},", entry[each] or {}, SAMPLING_FIELDS)
    guidance_schedule = entry.get("guidance_schedule", "constant")
    if guidance_schedule not in GUIDANCE_SCHEDULES:
        raise ValueError(f"guidance_schedule {guidance_schedule!r}; known are {', '.join(GUIDANCE_SCHEDULES)}")
    eps_scale = entry.get("eps_scale", 1.0)
    if type(eps_scale) not in (int, float) or not EPS_SCALE_MIN <= eps_scale <= EPS_SCALE_MAX:
        raise ValueError(f"eps_scale {eps_scale!r}; it must be from {EPS_SCALE_MIN} to {EPS_SCALE_MAX}")
    return PipelineSpec(
        name=name,
        conditional=entry["conditional"],
        class_required=entry["class_required"],
        guidance_scale=float(entry["guidance_scale"]),
        sampling=SamplingDefaults(**entry["sampling"]),
        upsampling=None if upsampling is None else SamplingDefaults(**upsampling),
        guidance_schedule=guidance_schedule,
        eps_scale=float(eps_scale),
        time_grids=entry.get("time_grids", {}),
    )


def check_fit(stack: StackPlan) -> None:
    """Check that the networks and pipelines of a stack fit each other. Raises: WeightsError."""
    classes, base = len(stack.class_names), stack.base.config
    assert isinstance(base, UNetConfig)
    rows = base.num_classes
    if rows is not None and rows not in (classes, classes + 1):
        raise WeightsError(stack.name, f"the base has {rows} label rows, {MANIFEST} names {counted(classes, 'class')}")
    if stack.upsampler is not None:
        _check_labels(stack, stack.upsampler, classes, rows)
    if stack.classifier is not None:
        classifier = stack.classifier.config
        assert isinstance(classifier, ClassifierConfig)
        if classifier.out_channels != classes:
            raise WeightsError(
                stack.name,
                f"the classifier has {counted(classifier.out_channels, 'class')}, {MANIFEST} names {classes}",
            )
        if classifier.image_size != base.image_size:
            raise WeightsError(stack.name, "classifier and base are of different image sizes")
    for spec in stack.pipelines.values():
        if spec.conditional != (rows is not None) and (rows is None or rows == classes):
            needed = "a base with label rows" if spec.conditional else "a base with a 'no class' row or no label rows"
            raise WeightsError(stack.name, f"the pipeline {spec.name!r} needs {needed}")
        for file, sampling in ((stack.base, spec.sampling), (stack.upsampler, spec.upsampling)):
            if file and file.process and sampling and sampling.steps > file.process.num_timesteps:
                timesteps = counted(file.process.num_timesteps, "timestep")
                too_many = f"has {counted(sampling.steps, 'step')}, but its network has {timesteps}"
                raise WeightsError(stack.name, f"the pipeline {spec.name!r} {too_many}")
        if spec.upsampling is not None and stack.upsampler is None:
            raise WeightsError(stack.name, f"the pipeline {spec.name!r} upsamples, but there is no upsampler")
        if spec.guidance_scale and stack.classifier is None:
            raise WeightsError(stack.name, f"the pipeline {spec.name!r} is guided, but there is no classifier")


def _check_labels(stack: StackPlan, upsampler: NetworkFile, classes: int, base_rows: int | None) -> None:
    # Both networks get the image's label, so the upsampler needs a row for each label of the base.
    assert isinstance(upsampler.config, UNetConfig)
    rows = upsampler.config.num_classes
    if rows not in (None, classes, classes + 1):
        raise WeightsError(
            stack.name, f"the upsampler has {rows} label rows, {MANIFEST} names {counted(classes, 'class')}"
        )
    if rows is not None and (base_rows is None or base_rows > rows):
        has = "none" if base_rows is None else f"{base_rows}, one for 'no class'"
        raise WeightsError(stack.name, f"the upsampler has {rows} label rows, but the base has {has}")
