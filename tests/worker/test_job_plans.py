"""The engine's requests for a job's request."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from datasets.image_folder import square_pixels
from engine.errors import UnknownOfferError
from engine.pipeline import Pipeline
from engine.trajectory import FromLatent, FromPicture
from jobs.contract.request import JobRequest, ResolvedRequest
from jobs.contract.resolution import resolve
from models.stack import load_stack
from tests.models.samples import replace_upsampler, write_base_alone, write_stack
from vocabulary.sampling import Direction
from worker.job_plans import JobPlan, plan_job, top_classes
from worker.offers import offer, select

Plan = Callable[..., JobPlan]


def pictures(pipeline: Pipeline, file_ids: Iterable[str]) -> dict[str, Tensor]:
    """The pictures that a worker fetches: file "red" is a red picture."""
    size = pipeline.stack.base.network.config.image_size
    return {each: square_pixels(Image.new("RGB", (32, 20), each), size) for each in file_ids}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Pipeline]:
    return select(["tiny", "tiny-uncond"], [load_stack(write_stack(tmp_path_factory.mktemp("weights") / "tiny"))])


def resolved(pipelines: Mapping[str, Pipeline], **body: Any) -> ResolvedRequest:
    body = {"model": "tiny", "steps": 4} | body
    request = JobRequest.parse(
        json.dumps({name: value for name, value in body.items() if value != "left out"}).encode()
    )
    return resolve(request, offer(pipelines[request.model or "tiny"]), lambda: 1)


def plan(pipelines: Mapping[str, Pipeline], **body: Any) -> JobPlan:
    request = resolved(pipelines, **body)
    return plan_job("job", request, pipelines, pictures(pipelines[request.model], request.images))


def test_generated_images_start_from_noise(pipelines: Mapping[str, Pipeline]) -> None:
    images = plan(pipelines, class_label="green", n=3).images
    assert [image.index for image in images] == [0, 1, 2]
    assert all(image.start is None for image in images)
    assert [each.stage for each in images[0].plans] == ["tiny/base", "tiny/upsample"]


def test_unconditional_pipeline_hides_the_class_from_the_network_alone(pipelines: Mapping[str, Pipeline]) -> None:
    (image,) = plan(pipelines, model="tiny-uncond", class_label="blue").images
    assert (image.network_label, image.guidance_target) == (3, ((2, 1.0),))


def test_class_weights_steer_and_the_network_sees_no_class(pipelines: Mapping[str, Pipeline]) -> None:
    request = {"class_weights": {"red": 3, "2": 1}, "guidance_scale": 2.0, "guidance_schedule": "entropy"}
    (image,) = plan(pipelines, **request).images
    assert (image.network_label, image.guidance_target) == (3, ((0, 0.75), (2, 0.25)))
    assert image.entropy_scaled


def test_variations_are_n_of_each_picture_and_take_their_share_of_the_steps(pipelines: Mapping[str, Pipeline]) -> None:
    images = plan(pipelines, kind="variation", images=["red", "blue"], n=2, strength=0.5, upsample=False).images
    assert [image.index for image in images] == [0, 1, 2, 3]
    assert [image.num_evaluations for image in images] == [2] * 4
    shown = [image.start.pixels[:, 0, 0].tolist() for image in images if isinstance(image.start, FromPicture)]
    assert shown == [[255, 0, 0], [255, 0, 0], [0, 0, 255], [0, 0, 255]]


def test_picture_to_enlarge_passes_the_upsampler_alone(pipelines: Mapping[str, Pipeline]) -> None:
    (image,) = plan(pipelines, kind="upsample", images=["red"], steps="left out").images
    assert [each.stage for each in image.plans] == ["tiny/upsample"]
    assert isinstance(image.start, FromPicture)
    assert image.start.pixels.shape == (3, 8, 8)


def test_class_of_a_picture_to_enlarge_reaches_a_class_conditional_upsampler_unguided(tmp_path: Path) -> None:
    folder = write_stack(tmp_path / "tiny")
    replace_upsampler(folder, num_classes=4)
    pipelines = select(["tiny"], [load_stack(folder)])
    for given, row in (("blue", 2), (None, 3)):
        (image,) = plan(pipelines, kind="upsample", images=["red"], steps="left out", class_label=given).images
        assert (image.network_label, image.guidance_scale) == (row, 0)


def test_reconstruction_goes_there_and_back_unbounded(pipelines: Mapping[str, Pipeline]) -> None:
    (image,) = plan(pipelines, kind="reconstruct", images=["red"]).images
    there, back = image.plans
    assert (there.direction, back.direction, there.num_steps, back.num_steps) == (
        Direction.ENCODE,
        Direction.DECODE,
        4,
        4,
    )
    assert there.thresholding == back.thresholding == "none"


def test_frames_between_pictures_start_along_the_way_between_their_latents(pipelines: Mapping[str, Pipeline]) -> None:
    made = plan(pipelines, kind="interpolate", images=["red", "blue"], n=3)
    assert [[each.direction for each in image.plans] for image in made.images] == [[Direction.ENCODE]] * 2
    assert len({image.index for image in [*made.images, *made.frames]}) == 5
    first, last = torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)
    first[0], last[1] = 1, 1
    frames = made.frames_between(first, last)
    latents = [frame.start.x for frame in frames if isinstance(frame.start, FromLatent)]
    assert torch.equal(latents[0], first)
    torch.testing.assert_close(latents[1], (first + last) / 2**0.5)
    torch.testing.assert_close(latents[2], last)


def test_frames_between_seeds_begin_and_end_at_their_noise(pipelines: Mapping[str, Pipeline]) -> None:
    images = plan(pipelines, kind="interpolate", seeds=[7, 9], n=4, class_label="red").images
    latents = [image.start.x for image in images if isinstance(image.start, FromLatent)]
    assert len(latents) == 4
    for latent, seed in ((latents[0], 7), (latents[-1], 9)):
        torch.testing.assert_close(latent, pipelines["tiny"].starting_noise(seed))


def test_all_frames_draw_one_noise(pipelines: Mapping[str, Pipeline]) -> None:
    between_seeds = plan(pipelines, kind="interpolate", seeds=[7, 9], n=4, class_label="red").images
    made = plan(pipelines, kind="interpolate", images=["red", "blue"], n=4)
    started = made.frames_between(torch.ones(3, 8, 8), torch.zeros(3, 8, 8))
    for frames in (between_seeds, started, made.frames):  # made.frames resume from checkpoints
        assert [frame.index for frame in frames] == [0, 1, 2, 3]
        assert {(frame.seed, frame.drawn_index) for frame in frames} == {(1, 0)}


def test_images_are_numbered_from_the_first_index(pipelines: Mapping[str, Pipeline]) -> None:
    whole = plan(pipelines, class_label="green", n=5).images
    assert plan(pipelines, class_label="green", n=2, first_index=3).images == whole[3:]
    enlarged = plan(pipelines, kind="upsample", images=["red", "blue"], first_index=3, steps="left out").images
    assert [(image.index, image.drawn_index) for image in enlarged] == [(3, 3), (4, 4)]
    varied = plan(pipelines, kind="variation", images=["red"], n=2, first_index=6).images
    assert [image.index for image in varied] == [6, 7]


def test_scale_of_eps_is_for_the_base_alone(pipelines: Mapping[str, Pipeline]) -> None:
    (image,) = plan(pipelines, class_label="green", eps_scale=1.02).images
    assert [each.eps_scale for each in image.plans] == [1.02, 1.0]
    (there_and_back,) = plan(pipelines, kind="reconstruct", images=["red"], eps_scale=1.02).images
    assert [each.eps_scale for each in there_and_back.plans] == [1.02, 1.02]


def test_pictures_to_classify_enter_no_stage(pipelines: Mapping[str, Pipeline]) -> None:
    made = plan(pipelines, kind="score", images=["red", "blue"], steps="left out")
    assert not made.images
    assert [picture.shape for picture in made.pictures] == [(3, 8, 8)] * 2


def test_likeliest_classes_come_first() -> None:
    assert top_classes(torch.tensor([0.2, 0.7, 0.1]), ["a", "b", "c"])[:2] == [
        {"class_label": 1, "class_name": "b", "probability": 0.7},
        {"class_label": 0, "class_name": "a", "probability": 0.2},
    ]


def test_request_for_what_the_worker_does_not_have_is_refused(tmp_path: Path) -> None:
    pipelines = select(["tiny"], [load_stack(write_base_alone(tmp_path / "tiny"))])
    request = resolved(pipelines, class_label="green")
    (image,) = plan_job("job", request, pipelines, {}).images
    assert (image.network_label, image.guidance_scale) == (1, 0)
    for changes, message in (
        ({"guidance_scale": 1.0}, "has no classifier"),
        ({"class_label": 9}, "has no class 9"),
        ({"model": "huge"}, "has no pipeline 'huge'"),
    ):
        with pytest.raises(UnknownOfferError, match=message):
            plan_job("job", request.model_copy(update=changes), pipelines, {})
