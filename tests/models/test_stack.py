import copy
import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from models.checkpoints.network_file import WeightsError, metadata_of, read_tensors, save_network
from models.checkpoints.tensor_file import write_tensors
from models.manifest import Sampling
from models.networks.classifier import NoisyClassifier
from models.networks.config import DiffusionConfig
from models.networks.unet import build_unet
from models.stack import file_hash, load_stack
from models.stack_plan import SamplingDefaults, official_stacks, read_stack
from tests.models.samples import BASE, CLASSES, CLASSIFIER, MANIFEST, replace_upsampler, write_manifest
from vocabulary.sampling import SAMPLERS


def test_stack_has_its_networks_classes_and_pipelines(pristine_stack: Path) -> None:
    stack = load_stack(pristine_stack)
    assert (stack.name, stack.class_names, stack.no_class_label) == ("tiny", CLASSES, 3)
    assert stack.upsampler is not None
    assert (stack.base.process, stack.upsampler.process) == (
        DiffusionConfig("cosine", 1000),
        DiffusionConfig("linear", 1000),
    )
    assert list(stack.pipelines) == ["tiny", "tiny-uncond"]
    assert stack.pipelines["tiny"].upsampling == SamplingDefaults(4, "ddim", 0.0)
    assert stack.pipelines["tiny-uncond"].upsampling is None
    assert stack.base.model_hash == file_hash(pristine_stack / "base.safetensors")


def test_hash_names_the_bytes_of_the_file(stack_folder: Path) -> None:
    path = stack_folder / "base.safetensors"
    before = file_hash(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert file_hash(path) != before


def test_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"stack\.json: there is no such stack"):
        load_stack(tmp_path)


@pytest.mark.parametrize("name", ["base", "classifier", "upsampler"])
def test_missing_file_is_named(stack_folder: Path, name: str) -> None:
    (stack_folder / f"{name}.safetensors").unlink()
    with pytest.raises(WeightsError, match=rf"{name}\.safetensors: there is no such weights file"):
        load_stack(stack_folder)


@pytest.mark.parametrize("text", ["", "{", "\x00", '{"classes": ["a"], "classes": ["b"]}'])
def test_manifest_that_is_no_json_is_refused(stack_folder: Path, text: str) -> None:
    (stack_folder / "stack.json").write_text(text)
    with pytest.raises(WeightsError, match=r"^tiny/stack\.json: is not JSON"):
        load_stack(stack_folder)


def test_manifest_that_is_no_object_is_refused(stack_folder: Path) -> None:
    write_manifest(stack_folder, ["base"])
    with pytest.raises(WeightsError, match=r"^tiny/stack\.json: is not a JSON object"):
        load_stack(stack_folder)


def no_base(manifest: dict[str, Any]) -> None:
    del manifest["base"]


def no_schedule(manifest: dict[str, Any]) -> None:
    del manifest["upsampler"]["schedule"]


def unknown_sampling_field(manifest: dict[str, Any]) -> None:
    manifest["pipelines"]["tiny"]["sampling"] = {"steps": 4, "sampler": "ddim", "temperature": 1}


def unknown_schedule(manifest: dict[str, Any]) -> None:
    manifest["base"]["schedule"] = "quadratic"


def too_few_timesteps(manifest: dict[str, Any]) -> None:
    manifest["base"]["num_timesteps"] = 19


def timesteps_in_words(manifest: dict[str, Any]) -> None:
    manifest["base"]["rescale_timesteps"] = "yes"


def fixed_variance_of_a_network_that_learned_it(manifest: dict[str, Any]) -> None:
    manifest["base"]["sigma_small"] = True


def scale_in_words(manifest: dict[str, Any]) -> None:
    manifest["pipelines"]["tiny"]["guidance_scale"] = "strong"


def pipelines_as_a_list(manifest: dict[str, Any]) -> None:
    manifest["pipelines"] = ["tiny"]


@pytest.mark.parametrize(
    "change",
    [
        no_base,
        no_schedule,
        unknown_schedule,
        too_few_timesteps,
        unknown_sampling_field,
        timesteps_in_words,
        fixed_variance_of_a_network_that_learned_it,
        scale_in_words,
        pipelines_as_a_list,
    ],
)
def test_manifest_with_a_wrong_field_is_refused_by_name(
    stack_folder: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    manifest = copy.deepcopy(MANIFEST)
    change(manifest)
    write_manifest(stack_folder, manifest)
    with pytest.raises(WeightsError, match=r"^tiny/stack\.json: a field is missing, unknown or wrong: "):
        load_stack(stack_folder)


WRONG_VALUES: dict[str, list[Any]] = {
    "classes": [["a", "a"], [1, 2], "torus", [""], [" a"], ["a\x1b[2Jb"], ["a" * 129], None],
    "pipelines": [{}, {"a/b": MANIFEST["pipelines"]["tiny"]}],
    "pipelines/tiny": [None, []],
    "pipelines/tiny/conditional": [1, "yes", None],
    "pipelines/tiny/guidance_scale": [math.nan, math.inf, -1, 51, "4", True, None],
    "pipelines/tiny/sampling/steps": [-1, 0, 1001, "4", 4.5, True, None, 10**400],
    "pipelines/tiny/sampling/sampler": ["euler", 1, ["ddim"]],
    "pipelines/tiny/sampling/eta": [7, -0.1, math.nan, "1"],
    "pipelines/tiny/upsampling": [{"steps": 4, "sampler": "ddpm", "eta": 0.5}],
    "base/num_timesteps": [0, 10**9, "1000", 4.5, True],
    "pipelines/tiny/upsampling/strength": [7, 0, math.nan],
    "base/file": ["", 3, None],
    "base": ["base.safetensors", None],
}


@pytest.mark.parametrize("place", WRONG_VALUES)
def test_wrong_value_is_refused_in_one_line_that_names_it(stack_folder: Path, place: str) -> None:
    *parents, name = place.split("/")
    for value in WRONG_VALUES[place]:
        manifest = copy.deepcopy(MANIFEST)
        entry: Any = manifest
        for each in parents:
            entry = entry[each]
        entry[name] = value
        write_manifest(stack_folder, manifest)
        with pytest.raises(WeightsError, match=rf"^tiny/stack\.json: [^\n]*{name}[^\n]*$"):
            load_stack(stack_folder)


def test_deep_nesting_is_no_manifest(stack_folder: Path) -> None:
    (stack_folder / "stack.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match=r"^tiny/stack\.json: is not JSON"):
        load_stack(stack_folder)


def test_samplers_of_a_manifest_are_the_engines() -> None:
    assert get_args(Sampling.model_fields["sampler"].annotation) == SAMPLERS


def unknown_field(manifest: dict[str, Any]) -> None:
    manifest["rescale_timesteps"] = True


def unknown_field_of_the_base(manifest: dict[str, Any]) -> None:
    manifest["base"]["timestep_respacing"] = "250"


def unknown_field_of_the_upsampler(manifest: dict[str, Any]) -> None:
    manifest["upsampler"]["noise_schedule"] = "cosine"


def unknown_field_of_the_classifier(manifest: dict[str, Any]) -> None:
    manifest["classifier"]["schedule"] = "cosine"


def unknown_field_of_a_pipeline(manifest: dict[str, Any]) -> None:
    manifest["pipelines"]["tiny"]["class_conditional"] = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unknown_field, "the stack has an unknown field 'rescale_timesteps'; known are classes, base, "),
        (unknown_field_of_the_base, "the base has an unknown field 'timestep_respacing'; known are file, schedule, "),
        (unknown_field_of_the_upsampler, "the upsampler has an unknown field 'noise_schedule'; known are file, "),
        (unknown_field_of_the_classifier, "the classifier has an unknown field 'schedule'; known are file$"),
        (unknown_field_of_a_pipeline, "the pipeline 'tiny' has an unknown field 'class_conditional'; known are "),
        (unknown_sampling_field, "the pipeline 'tiny', sampling, has an unknown field 'temperature'; known are "),
    ],
)
def test_unknown_field_is_named_with_the_known_ones(
    stack_folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    manifest = copy.deepcopy(MANIFEST)
    change(manifest)
    write_manifest(stack_folder, manifest)
    with pytest.raises(WeightsError, match=message):
        load_stack(stack_folder)


def test_scale_of_eps_is_a_constant_of_the_pipeline(stack_folder: Path) -> None:
    manifest = copy.deepcopy(MANIFEST)
    manifest["pipelines"]["tiny"]["eps_scale"] = 1.02
    write_manifest(stack_folder, manifest)
    pipelines = load_stack(stack_folder).pipelines
    assert (pipelines["tiny"].eps_scale, pipelines["tiny-uncond"].eps_scale) == (1.02, 1.0)
    assert {spec.eps_scale for plan in official_stacks(stack_folder) for spec in plan.pipelines.values()} == {1.0}


@pytest.mark.parametrize("wrong", [0.5, 1.2, "1", None, True])
def test_scale_of_eps_out_of_bounds_is_refused(stack_folder: Path, wrong: object) -> None:
    manifest = copy.deepcopy(MANIFEST)
    manifest["pipelines"]["tiny"]["eps_scale"] = wrong
    write_manifest(stack_folder, manifest)
    with pytest.raises(WeightsError, match=r"eps_scale .*; it must be from 0\.9 to 1\.1"):
        load_stack(stack_folder)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"euler": "even"}, "time_grids.euler"), ({"ddim": "log"}, "time_grids.ddim"), (["even"], "time_grids")],
)
def test_time_grid_that_is_unknown_or_of_an_unknown_sampler_is_refused(
    stack_folder: Path, wrong: object, message: str
) -> None:
    manifest = copy.deepcopy(MANIFEST)
    manifest["pipelines"]["tiny"]["time_grids"] = wrong
    write_manifest(stack_folder, manifest)
    with pytest.raises(WeightsError, match=message):
        load_stack(stack_folder)


def test_classifier_of_other_classes_is_refused(stack_folder: Path) -> None:
    config = dataclasses.replace(CLASSIFIER, out_channels=7)
    state = NoisyClassifier(config).state_dict()
    save_network(stack_folder / "classifier.safetensors", state, config, dtype=torch.float16)
    with pytest.raises(WeightsError, match=r"^tiny: the classifier has 7 classes, stack\.json names 3"):
        load_stack(stack_folder)


@pytest.mark.parametrize("rows", [2, 7])
def test_base_of_other_classes_is_refused(stack_folder: Path, rows: int) -> None:
    replace_base(stack_folder, num_classes=rows)
    with pytest.raises(WeightsError, match=rf"^tiny: the base has {rows} label rows, stack\.json names 3 classes"):
        load_stack(stack_folder)


@pytest.mark.parametrize(
    ("rows", "base_rows", "message"),
    [
        (7, 4, "the upsampler has 7 label rows, stack.json names 3 classes"),
        (3, 4, "the upsampler has 3 label rows, but the base has 4, one for 'no class'"),
        (3, None, "the upsampler has 3 label rows, but the base has none"),
    ],
)
def test_upsampler_that_lacks_a_label_of_the_base_is_refused(
    stack_folder: Path, rows: int, base_rows: int | None, message: str
) -> None:
    replace_base(stack_folder, num_classes=base_rows)
    replace_upsampler(stack_folder, num_classes=rows)
    with pytest.raises(WeightsError, match=f"^tiny: {re.escape(message)}$"):
        load_stack(stack_folder)


def test_upsampler_of_the_labels_of_the_base_is_taken(stack_folder: Path) -> None:
    replace_upsampler(stack_folder, num_classes=4)
    upsampler = load_stack(stack_folder).upsampler
    assert upsampler is not None
    assert upsampler.network.config.num_classes == 4


def test_classifier_of_another_image_size_is_refused(stack_folder: Path) -> None:
    replace_base(stack_folder, image_size=16)
    with pytest.raises(WeightsError, match="classifier and base are of different image sizes"):
        load_stack(stack_folder)


def test_unconditional_pipeline_needs_a_row_for_no_class(stack_folder: Path) -> None:
    replace_base(stack_folder, num_classes=3)
    with pytest.raises(WeightsError, match="the pipeline 'tiny-uncond' needs a base with a 'no class' row"):
        load_stack(stack_folder)


def test_base_alone_makes_a_pipeline_that_is_not_guided(stack_folder: Path) -> None:
    manifest = copy.deepcopy(MANIFEST)
    del manifest["classifier"], manifest["upsampler"], manifest["pipelines"]["tiny-uncond"]
    manifest["pipelines"]["tiny"] |= {"guidance_scale": 0, "upsampling": None}
    write_manifest(stack_folder, manifest)
    stack = load_stack(stack_folder)
    assert (stack.classifier, stack.upsampler) == (None, None)


@pytest.mark.parametrize(
    ("missing", "message"), [("classifier", "is guided, but there is no"), ("upsampler", "upsamples, but there is no")]
)
def test_pipeline_that_needs_a_missing_network_is_refused(stack_folder: Path, missing: str, message: str) -> None:
    manifest = copy.deepcopy(MANIFEST)
    del manifest[missing]
    write_manifest(stack_folder, manifest)
    with pytest.raises(WeightsError, match=f"the pipeline 'tiny' {message} {missing}"):
        load_stack(stack_folder)


def test_base_that_gives_neither_an_image_nor_one_with_its_variance_is_refused(stack_folder: Path) -> None:
    replace_base(stack_folder, out_channels=4)
    with pytest.raises(
        WeightsError, match=rf"^{stack_folder.name}/base\.safetensors: must have 3 input channels, and 3 output"
    ):
        load_stack(stack_folder)


def replace_base(folder: Path, **changes: int | None) -> None:
    config = dataclasses.replace(BASE, **changes)  # type: ignore[arg-type]  # integer fields alone
    save_network(folder / "base.safetensors", build_unet(config).state_dict(), config, dtype=torch.float16)


def test_process_in_a_file_need_not_be_in_the_manifest_but_must_not_contradict_it(stack_folder: Path) -> None:
    process = DiffusionConfig("cosine", 4000, rescale_timesteps=True)
    path = stack_folder / "base.safetensors"
    write_tensors(path, read_tensors(path), torch.float16, metadata_of(BASE, process))
    manifest = copy.deepcopy(MANIFEST)
    manifest["base"] = {"file": "base.safetensors"}
    write_manifest(stack_folder, manifest)
    assert load_stack(stack_folder).base.process == process
    manifest["base"] |= {"schedule": "linear"}
    write_manifest(stack_folder, manifest)
    with pytest.raises(WeightsError, match=r"schedule is 'linear' here and 'cosine' in base\.safetensors$"):
        load_stack(stack_folder)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_manifest_is_read_with_a_byte_order_mark(stack_folder: Path, encoding: str) -> None:
    manifest = stack_folder / "stack.json"
    expected = read_stack(stack_folder)
    manifest.write_text(manifest.read_text(), encoding=encoding)
    assert read_stack(stack_folder) == expected
