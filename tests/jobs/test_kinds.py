"""Kinds of jobs beside `generate`, and guidance towards more than one class."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract.errors import InvalidRequestError
from jobs.contract.kinds import KINDS
from jobs.contract.request import ResolvedRequest
from jobs.contract.work import work_of
from tests.jobs.samples import BASE_ONLY, DEMO
from tests.jobs.test_request import pointers, resolve
from vocabulary.sampling import most_encoding_steps

NO_CLASSIFIER = DEMO.model_copy(
    update={"stages": (DEMO.stages[0].model_copy(update={"classifier_hash": None}), DEMO.stages[1])}
)
CLASS_UPSAMPLER = DEMO.model_copy(
    update={"stages": (DEMO.stages[0], DEMO.stages[1].model_copy(update={"class_conditional": True}))}
)


def test_reconstruction_has_steps_of_ddim_and_nothing_to_draw() -> None:
    request = resolve(kind="reconstruct", images=["a", "b"])
    assert (request.steps, request.sampler, request.eta, request.seed) == (50, "ddim", 0, 0)
    assert (request.class_label, request.guidance_scale, request.upsample) == (None, 0, False)
    assert (request.num_images, work_of(request)) == (2, {"base": 198})
    assert [request.source(index) for index in range(2)] == ["a", "b"]


@pytest.mark.parametrize("steps", [38, 63, 64, 300, 990])
@pytest.mark.parametrize("kind", ["reconstruct", "interpolate"])
def test_encoded_image_takes_the_even_grid_at_any_count(kind: str, steps: int) -> None:
    assert resolve(kind=kind, images=["a", "b"], steps=steps).time_grid == "even"
    assert resolve(kind=kind, images=["a", "b"], steps=steps, time_grid="official").time_grid == "official"


def test_latent_is_not_at_the_end_of_the_schedule() -> None:
    assert pointers(kind="reconstruct", images=["a"], steps=991) == ["/steps"]
    assert most_encoding_steps(DEMO.num_timesteps) == 990


def test_default_eta_of_a_pipeline_is_not_for_encoding() -> None:
    pipeline = DEMO.model_copy(update={"defaults": DEMO.defaults.model_copy(update={"sampler": "ddpm", "eta": 1.0})})
    request = resolve(pipeline, kind="reconstruct", images=["a"])
    assert (request.sampler, request.eta) == ("ddim", 0)


def test_encoded_image_is_guided_only_when_asked_to() -> None:
    assert resolve(kind="reconstruct", images=["a"], class_label="torus").guidance_scale == 0
    assert resolve(kind="reconstruct", images=["a"], class_label="torus", guidance_scale=2).guidance_scale == 2
    assert resolve(kind="variation", images=["a"], class_label="torus").guidance_scale == 1.5
    assert resolve(kind="variation", images=["a"]).guidance_scale == 0


def test_variation_makes_n_of_each_image_in_order() -> None:
    request = resolve(kind="variation", images=["a", "b"], n=3, strength=0.28, steps=25)
    assert (request.strength, request.num_images) == (0.28, 6)
    assert [request.source(index) for index in range(6)] == ["a"] * 3 + ["b"] * 3
    assert work_of(request) == {"base": 6 * 7, "upsample": 6 * 10}
    assert resolve(kind="variation", images=["a"]).strength == 0.5


def test_strength_zero_takes_one_step() -> None:
    request = resolve(kind="variation", images=["a"], strength=0, sampler="heun", upsample=False)
    assert work_of(request) == {"base": 1}


def test_first_index_numbers_the_images() -> None:
    assert list(resolve(class_label=1, n=2, first_index=3).indices) == [3, 4]
    request = resolve(kind="variation", images=["a"], n=3, first_index=4)
    assert [request.source(index) for index in request.indices] == ["a"] * 3
    request = resolve(kind="upsample", images=["a", "b"], first_index=4)
    assert [request.source(index) for index in request.indices] == ["a", "b"]


def test_first_index_is_refused_where_images_have_no_such_number() -> None:
    assert pointers(kind="variation", images=["a", "b"], first_index=1) == ["/first_index"]
    assert pointers(kind="interpolate", seeds=[1, 2], class_label=1, first_index=1) == ["/first_index"]
    assert pointers(class_label=1, first_index=-1) == ["/first_index"]
    assert pointers(class_label=1, n=64, first_index=2**32 - 63) == ["/first_index"]
    assert pointers(class_label=1, first_index=2**32) == ["/first_index"]
    assert list(resolve(class_label=1, first_index=2**32 - 1).indices) == [2**32 - 1]
    assert pointers(kind="upsample", images=["a", "b"], first_index=2**32 - 1) == ["/first_index"]
    assert resolve(class_label=1, n=64, first_index=2**32 - 64).indices[-1] == 2**32 - 1


def test_interpolation_between_images_encodes_both() -> None:
    request = resolve(kind="interpolate", images=["a", "b"], upsample=False)
    assert (request.n, request.num_images, request.steps, request.sampler) == (8, 8, 50, "ddim")
    assert work_of(request) == {"base": 2 * 49 + 8 * 50}
    assert request.source(0) is None


def test_interpolation_between_seeds_samples_as_generation_does() -> None:
    request = resolve(kind="interpolate", seeds=[1, 2], n=5, class_label=1, sampler="dpmpp_2m", steps=10)
    assert (request.seeds, request.steps, request.guidance_scale) == ([1, 2], 10, 1.5)
    assert work_of(request) == {"base": 50, "upsample": 50}


def test_upsampling_takes_the_upsamplers_steps_alone() -> None:
    request = resolve(kind="upsample", images=["a"], upsample={"steps": 7, "sampler": "ddpm"})
    assert request.upsample
    assert (request.steps, request.sampler, request.upsample.steps) == (7, "ddpm", 7)
    assert work_of(request) == {"upsample": 7}


def test_class_conditional_upsampler_gets_a_class_and_no_guidance() -> None:
    request = resolve(CLASS_UPSAMPLER, kind="upsample", images=["a"], class_label="torus")
    assert (request.class_label, request.guidance_scale) == (4, 0)
    assert pointers(CLASS_UPSAMPLER, kind="upsample", images=["a"], class_label=1, guidance_scale=2) == [
        "/guidance_scale"
    ]


def test_class_conditional_upsampler_requires_a_class_or_an_outright_none_where_offered() -> None:
    assert pointers(CLASS_UPSAMPLER, kind="upsample", images=["a"]) == ["/class_label"]
    assert resolve(CLASS_UPSAMPLER, kind="upsample", images=["a"], class_label=None).class_label is None
    classes_alone = CLASS_UPSAMPLER.model_copy(update={"no_class_offered": False})
    assert pointers(classes_alone, kind="upsample", images=["a"], class_label=None) == ["/class_label"]
    assert pointers(classes_alone, kind="upsample", images=["a"], class_label=99) == ["/class_label"]


def test_score_looks_once_and_makes_no_image() -> None:
    request = resolve(kind="score", images=["a", "b"])
    assert (request.num_images, request.num_rows, request.steps, work_of(request)) == (0, 2, 1, {"base": 2})


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"images": ["a"]}, ["/images", "/class_label"]),
        ({"kind": "score", "images": ["a"], "steps": 3}, ["/steps"]),
        ({"kind": "score", "images": ["a"], "seed": 3, "n": 2}, ["/n", "/seed"]),
        ({"kind": "score"}, ["/images"]),
        ({"kind": "score", "images": []}, ["/images"]),
        ({"kind": "score", "images": ["a"] * 17}, ["/images"]),
        ({"kind": "score", "images": [7]}, ["/images/0"]),
        ({"kind": "upsample", "images": ["a"], "class_label": 1}, ["/class_label"]),
        ({"kind": "upsample", "images": ["a"], "steps": 5}, ["/steps"]),
        ({"kind": "upsample", "images": ["a"], "upsample": False}, ["/upsample"]),
        ({"kind": "upsample", "images": ["a"], "n": 2}, ["/n"]),
        ({"kind": "reconstruct", "images": ["a"], "sampler": "ddpm"}, ["/sampler"]),
        ({"kind": "reconstruct", "images": ["a"], "eta": 0.5}, ["/eta"]),
        ({"kind": "reconstruct", "images": ["a"], "n": 2}, ["/n"]),
        ({"kind": "reconstruct", "images": ["a"], "steps": 1}, ["/steps"]),
        ({"kind": "reconstruct", "images": ["a"], "thresholding": "dynamic"}, ["/thresholding"]),
        ({"kind": "reconstruct", "images": ["a"], "guidance_scale": 1}, ["/guidance_scale"]),
        ({"kind": "interpolate"}, ["/images"]),
        ({"kind": "interpolate", "images": ["a", "b"], "seeds": [1, 2]}, ["/images"]),
        ({"kind": "interpolate", "images": ["a"]}, ["/images"]),
        ({"kind": "interpolate", "images": ["a", "b"], "sampler": "heun"}, ["/sampler"]),
        ({"kind": "interpolate", "images": ["a", "b"], "thresholding": "dynamic"}, ["/thresholding"]),
        ({"kind": "interpolate", "seeds": [1, 2], "n": 1}, ["/n"]),
        ({"kind": "interpolate", "seeds": [1]}, ["/seeds"]),
        ({"kind": "variation", "images": ["a"] * 5, "n": 13}, ["/n"]),
        ({"kind": "variation", "images": ["a"], "strength": 1.5}, ["/strength"]),
        ({"class_label": 1, "strength": 0.5}, ["/strength"]),
        ({"kind": "draw"}, ["/kind"]),
    ],
)
def test_field_that_is_not_of_the_kind_is_named(fields: dict[str, Any], found: list[str]) -> None:
    assert pointers(**fields) == found


def test_defaults_given_outright_are_of_every_kind() -> None:
    assert resolve(kind="score", images=["a"], n=1, steps=None, class_label=None, previews=False).kind == "score"


def test_kind_that_a_pipeline_does_not_offer_is_refused() -> None:
    old = DEMO.model_validate(DEMO.model_dump(exclude={"kinds"}))
    assert old.kinds == ("generate",)
    assert pointers(old, kind="score", images=["a"]) == ["/kind"]


def test_kind_without_the_network_for_it_is_refused() -> None:
    assert pointers(BASE_ONLY, kind="upsample", images=["a"]) == ["/upsample"]
    assert pointers(NO_CLASSIFIER, kind="score", images=["a"]) == ["/kind"]


def test_image_without_a_class_needs_a_pipeline_that_offers_none() -> None:
    assert pointers(BASE_ONLY, kind="reconstruct", images=["a"]) == ["/class_label"]


def test_class_weights_become_a_distribution_by_index() -> None:
    request = resolve(class_weights={"torus": 3, "2": 1})
    assert (request.class_label, request.guidance_scale) == (None, 1.5)
    assert request.class_weights == {"2": 0.25, "4": 0.75}
    assert resolve(class_label=1, class_weights={"torus": 3}).class_label == 1


@given(weights=st.dictionaries(st.sampled_from("0123456789"), st.floats(1e-6, 1e6), min_size=1))
def test_class_weights_of_a_resolved_request_stay_as_they_are(weights: dict[str, float]) -> None:
    """A PNG has those of its resolved request, and the request that is made of them makes it again."""
    once = resolve(class_weights=weights).class_weights
    assert resolve(class_weights=once).class_weights == once


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ({"donut": 1}, ["/class_weights/donut"]),
        ({"99": 1}, ["/class_weights/99"]),
        ({"a/b~": 1}, ["/class_weights/a~1b~0"]),
        ({"torus": 1, "4": 1}, ["/class_weights/4"]),
        ({"torus": 0}, ["/class_weights/torus"]),
        ({"torus": "1"}, ["/class_weights/torus"]),
        ({}, ["/class_weights"]),
    ],
)
def test_wrong_class_weight_is_named(weights: dict[str, Any], found: list[str]) -> None:
    assert pointers(class_weights=weights) == found


def test_guidance_by_a_classifier_that_is_not_there_is_refused() -> None:
    found = pointers(NO_CLASSIFIER, class_label=1, class_weights={"torus": 1}, guidance_schedule="entropy")
    assert found == ["/class_weights", "/guidance_schedule"]
    assert resolve(class_label=1, guidance_schedule="entropy").guidance_schedule == "entropy"


def test_default_scale_comes_with_its_schedule_and_a_named_one_is_constant() -> None:
    defaults = DEMO.defaults.model_copy(update={"guidance_scale": 20.0, "guidance_schedule": "entropy"})
    by_entropy = DEMO.model_copy(update={"defaults": defaults})
    assert resolve(by_entropy, class_label=1).guidance_schedule == "entropy"
    assert resolve(by_entropy, class_label=1, guidance_scale=20.0).guidance_schedule == "constant"
    assert resolve(by_entropy, class_label=1, guidance_schedule="constant").guidance_scale == 20.0
    assert resolve(by_entropy, kind="reconstruct", images=["a"], class_label=1).guidance_schedule == "constant"


def test_class_weights_do_not_help_where_the_network_needs_a_class() -> None:
    assert pointers(BASE_ONLY, class_weights={"torus": 1}) == ["/class_label"]


def test_every_kind_survives_json() -> None:
    for kind in KINDS:
        fields: dict[str, Any] = {"kind": kind, "images": ["a", "b"]}
        if kind == "generate":
            fields = {"class_weights": {"torus": 1}}
        request = resolve(**fields)
        assert ResolvedRequest.model_validate(json.loads(json.dumps(request.model_dump()))) == request


def test_detail_says_what_would_do() -> None:
    with pytest.raises(InvalidRequestError, match="is required by kind 'score'"):
        resolve(kind="score")
