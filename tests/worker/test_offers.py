"""The pipelines that a worker offers, and its plans for a request."""

import copy
from pathlib import Path

import pytest

from jobs.contract.errors import SettingsError
from jobs.settings import Settings
from jobs.views.fleet import Fleet
from models.stack import load_stack, outline_plan
from models.stack_plan import read_stack
from tests.models.samples import MANIFEST, replace_upsampler, write_base_alone, write_manifest, write_stack
from worker.local_worker import pipeline_of
from worker.offers import offer, select


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stack(tmp_path_factory.mktemp("weights") / "tiny")


def test_offer_has_classes_stages_and_defaults(folder: Path) -> None:
    pipelines = select(["tiny", "tiny-uncond"], [load_stack(folder)])
    guided, uncond = (offer(pipeline) for pipeline in pipelines.values())
    assert [each.name for each in guided.classes] == ["red", "green", "blue"]
    assert [(stage.name, stage.image_size) for stage in guided.stages] == [("base", 8), ("upsample", 16)]
    assert (guided.image_size, uncond.image_size) == (16, 8)
    assert guided.class_required
    assert not uncond.class_required
    assert uncond.defaults.upsample is None


def test_offer_has_the_pipelines_scale_of_eps_and_time_grids(tmp_path: Path) -> None:
    manifest = copy.deepcopy(MANIFEST)
    manifest["pipelines"]["tiny"] |= {"eps_scale": 1.02, "time_grids": {"ddpm": "uniform"}}
    write_manifest(write_stack(tmp_path / "tiny"), manifest)
    defaults = offer(select(["tiny"], [load_stack(tmp_path / "tiny")])["tiny"]).defaults
    assert (defaults.eps_scale, defaults.time_grids) == (1.02, {"ddpm": "uniform"})


def test_fleet_sees_that_pipelines_of_one_stack_share_its_networks(folder: Path) -> None:
    """The fleet's view agrees with the engine's, in which both pipelines have the same stage key."""
    pipelines = select(["tiny", "tiny-uncond"], [load_stack(folder)])
    fleet = Fleet({name: offer(pipeline) for name, pipeline in pipelines.items()})
    assert len({pipeline.stage_key("base") for pipeline in pipelines.values()}) == 1
    assert fleet.shares_network("base", "tiny", "tiny-uncond")
    assert not fleet.shares_network("upsample", "tiny", "tiny-uncond"), "one of them has none"


def test_pipeline_is_described_from_its_plan_as_from_its_networks(folder: Path) -> None:
    outlined, loaded = outline_plan(read_stack(folder)), load_stack(folder)
    assert all(each.is_meta for each in outlined.base.network.parameters())
    for name in ("tiny", "tiny-uncond"):
        info = offer(select([name], [loaded])[name])
        assert offer(select([name], [outlined])[name]) == info
        assert pipeline_of(Settings(weights=folder.parent), name) == info


def test_pipeline_that_no_stack_has_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(SettingsError, match="no stack has a pipeline 'huge'; there are tiny, tiny-uncond"):
        select(["huge"], [load_stack(folder)])


def test_base_alone_offers_no_guidance(tmp_path: Path) -> None:
    pipelines = select(["tiny"], [load_stack(write_base_alone(tmp_path / "tiny"))])
    info = offer(pipelines["tiny"])
    assert info.limits.guidance_scale.max == 0
    assert info.stages[0].classifier_hash is None
    assert info.kinds == ("generate", "variation", "reconstruct", "interpolate")


def test_class_conditional_upsampler_is_announced_where_the_networks_see_the_class(tmp_path: Path) -> None:
    folder = write_stack(tmp_path / "tiny")
    replace_upsampler(folder, num_classes=4)
    manifest = copy.deepcopy(MANIFEST)
    manifest["pipelines"]["tiny-uncond"]["upsampling"] = manifest["pipelines"]["tiny"]["upsampling"]
    write_manifest(folder, manifest)
    pipelines = select(["tiny", "tiny-uncond"], [load_stack(folder)])
    conditional = [[stage.class_conditional for stage in offer(pipeline).stages] for pipeline in pipelines.values()]
    assert conditional == [[True, True], [False, False]]
