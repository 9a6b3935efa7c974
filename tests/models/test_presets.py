"""The presets' data: ImageNet's names, the pipelines, and the table of docs/checkpoints.md."""

from pathlib import Path

import pytest

from models.checkpoints.presets import OFFICIAL_PIPELINES, PRESETS, OfficialPipeline, imagenet_names

DOCUMENT = Path("docs/checkpoints.md")


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0, "tench"),
        (1, "goldfish"),
        (134, "crane"),
        (207, "golden retriever"),
        (281, "tabby"),
        (388, "giant panda"),
        (417, "balloon"),
        (517, "crane (machine)"),
        (933, "cheeseburger"),
        (985, "daisy"),
        (999, "toilet tissue"),
    ],
)
def test_imagenet_names_are_in_the_order_of_their_labels(index: int, name: str) -> None:
    assert imagenet_names()[index] == name


def test_every_imagenet_class_has_a_name_of_its_own() -> None:
    assert len(set(imagenet_names())) == 1000


def test_every_checkpoint_is_in_a_pipeline() -> None:
    assert {name for each in OFFICIAL_PIPELINES.values() for name in each.files} == set(PRESETS)


def test_classes_are_those_of_imagenet_or_none() -> None:
    assert {name for name, preset in PRESETS.items() if not preset.class_names} == {
        "256x256_diffusion_uncond",
        "lsun_bedroom",
        "lsun_cat",
        "lsun_horse",
        "lsun_horse_nodropout",
    }


def row(pipeline: OfficialPipeline) -> str:
    sampling = pipeline.sampling
    how = f"DDPM, {sampling.steps} steps" + (f" ({sampling.best_steps} is best)" if sampling.best_steps else "")
    how += f", scale {sampling.guidance_scale:g}" if sampling.classifier else ", unguided"
    how += f"; then {sampling.steps} steps" if pipeline.upsampler else ""
    best = pipeline.published[0] if pipeline.published else None
    figures = f"{best.fid:g} | {best.precision:g} | {best.recall:g}" if best else "| | "
    size = PRESETS[pipeline.upsampler or pipeline.base].config.image_size
    files = ", ".join(f"`{name}`" for name in pipeline.files)
    return f"| `{pipeline.name}` | {size} | {files} | {how} | {figures} |"


@pytest.mark.parametrize("name", OFFICIAL_PIPELINES)
def test_document_agrees_with_the_presets(name: str) -> None:
    assert row(OFFICIAL_PIPELINES[name]) in DOCUMENT.read_text().splitlines()
