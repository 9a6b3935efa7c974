import difflib
import json
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import resolution
from jobs.contract.errors import MAX_ERRORS, InvalidRequestError
from jobs.contract.pipelines import ClassInfo, IntRange, Limits, PipelineInfo
from jobs.contract.request import JobRequest, ResolvedRequest
from tests.jobs.samples import BASE_ONLY, DEMO, DEMO_UNCOND


def resolve(pipeline: PipelineInfo = DEMO, **fields: Any) -> ResolvedRequest:
    return resolution.resolve(JobRequest.parse(json.dumps(fields).encode()), pipeline, lambda: 7)


def pointers(pipeline: PipelineInfo = DEMO, **fields: Any) -> list[str]:
    with pytest.raises(InvalidRequestError) as caught:
        resolve(pipeline, **fields)
    return [each.pointer for each in caught.value.errors]


def test_all_defaults_are_the_pipelines() -> None:
    request = resolve(class_label="star")
    assert (request.class_label, request.guidance_scale, request.steps, request.sampler) == (9, 1.5, 25, "ddim")
    assert (request.n, request.seed, request.guidance_interval) == (1, 7, [0, 1000])
    assert request.upsample
    assert request.upsample.steps == 10


LONG = DEMO.model_copy(update={"num_timesteps": 4000, "limits": Limits(steps=IntRange(min=1, max=4000))})
SHORT = DEMO.model_copy(update={"num_timesteps": 30, "limits": Limits(steps=IntRange(min=1, max=30))})


def test_steps_are_at_most_the_timesteps_of_the_stage() -> None:
    assert resolve(LONG, class_label=0, steps=4000).steps == 4000
    assert pointers(class_label=0, steps=1001, upsample={"steps": 1001}) == ["/steps", "/upsample/steps"]
    assert pointers(SHORT, class_label=0, steps=31) == ["/steps"]
    assert resolve(SHORT, kind="reconstruct", images=["file_1"]).steps == 29  # no latent at the end


def test_interval_is_of_the_pipelines_timesteps() -> None:
    assert resolve(LONG, class_label=0).guidance_interval == [0, 4000]
    assert resolve(LONG, class_label=0, guidance_interval=[0, 1000]).guidance_interval == [0, 1000]
    assert resolve(LONG, class_label=0, guidance_interval=[1500, 4000]).guidance_interval == [1500, 4000]
    assert pointers(LONG, class_label=0, guidance_interval=[0, 4001]) == ["/guidance_interval/1"]
    assert pointers(class_label=0, guidance_interval=[0, 1001]) == ["/guidance_interval/1"]
    assert resolve(SHORT, class_label=0, guidance_interval=[0, 1000]).guidance_interval == [0, 1000]


def test_default_eta_belongs_to_the_default_sampler_and_goes_with_no_other_that_is_named() -> None:
    pipeline = DEMO.model_copy(update={"defaults": DEMO.defaults.model_copy(update={"eta": 1.0})})
    assert resolve(pipeline, class_label=0).eta == 1
    assert resolve(pipeline, class_label=0, sampler="ddim").eta == 0
    assert resolve(pipeline, class_label=0, sampler="ddpm").eta == 0
    assert resolve(pipeline, class_label=0, sampler="ddim", eta=0.5).eta == 0.5


def test_all_wrong_fields_are_named_at_once() -> None:
    assert pointers(class_label="donut", sampler="euler", eta=0.5, upsample={"sampler": "x"}) == [
        "/class_label",
        "/sampler",
        "/eta",
        "/upsample/sampler",
    ]


def test_required_class_says_that_null_is_none_where_that_is_offered() -> None:
    with pytest.raises(InvalidRequestError, match=r"is required by 'demo' \(null asks for no class\)$"):
        resolve()
    with pytest.raises(InvalidRequestError, match=r"is required by 'demo'$"):
        resolve(DEMO.model_copy(update={"no_class_offered": False}))


def test_class_names_are_listed_where_they_are_few() -> None:
    with pytest.raises(InvalidRequestError, match=f"there are: {', '.join(each.name for each in DEMO.classes)}$"):
        resolve(class_label="Torrus")


def test_near_class_names_are_suggested_where_there_are_many() -> None:
    many = [ClassInfo(index=index, name=f"kind {index}") for index in range(1, 30)]
    pipeline = DEMO.model_copy(update={"classes": (ClassInfo(index=0, name="torus"), *many)})
    with pytest.raises(InvalidRequestError, match=r"unknown class 'Torrus'; near: torus$"):
        resolve(pipeline, class_label="Torrus")
    with pytest.raises(InvalidRequestError, match=r"unknown class 'donut'; there are 30 classes$"):
        resolve(pipeline, class_label="donut")


def test_unknown_classes_beyond_those_that_an_answer_names_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand names are compared with each of them, while other submissions wait."""
    names = tuple(ClassInfo(index=index, name=f"kind {index}") for index in range(1000))
    compared: list[int] = []

    def get_close_matches(word: str, possibilities: list[str], n: int) -> list[str]:
        compared.append(len(possibilities))
        return difflib.get_close_matches(word, possibilities, n)

    monkeypatch.setattr("vocabulary.classes.get_close_matches", get_close_matches)  # the library's, counted
    with pytest.raises(InvalidRequestError) as caught:
        resolve(DEMO.model_copy(update={"classes": names}), class_weights={f"torus {each}": 1.0 for each in range(32)})
    assert len(caught.value.errors) == len(compared) == MAX_ERRORS
    assert set(compared) == {0}, "no name begins as these do"


def test_unknown_field_names_a_similar_one() -> None:
    with pytest.raises(InvalidRequestError, match=r"^/guidance: .*; near: guidance_scale; /colour: unknown field$"):
        resolve(class_label=0, guidance=3, colour="red")


def test_unknown_fields_beyond_those_that_an_answer_names_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def get_close_matches(word: str, possibilities: Collection[str], n: int) -> list[str]:
        compared.append(len(possibilities))
        return difflib.get_close_matches(word, list(possibilities), n)

    monkeypatch.setattr("jobs.contract.json_bodies.get_close_matches", get_close_matches)  # the library's, counted
    assert len(pointers(DEMO, **{f"guidance_{each}": 1 for each in range(100)})) == MAX_ERRORS + 1
    assert len([each for each in compared if each > 0]) == MAX_ERRORS


def test_limit_is_named_in_plain_words() -> None:
    with pytest.raises(InvalidRequestError, match=r"^/guidance_scale: must be at most 50; /n: must be at least 1$"):
        resolve(class_label=0, guidance_scale=51, n=0)


def test_error_of_the_whole_body_begins_with_no_colon() -> None:
    with pytest.raises(InvalidRequestError, match=r"^invalid JSON"):
        JobRequest.parse(b"{")


def test_class_must_be_given_but_may_be_null_where_offered() -> None:
    assert pointers() == ["/class_label"]
    assert resolve(class_label=None).class_label is None
    assert pointers(BASE_ONLY, class_label=None) == ["/class_label"]


def test_no_class_has_no_guidance() -> None:
    assert resolve(class_label=None, guidance_scale=0).guidance_scale == 0
    assert pointers(class_label=None, guidance_scale=2) == ["/guidance_scale"]


def test_unconditional_pipeline_needs_a_class_only_to_guide() -> None:
    assert resolve(DEMO_UNCOND, guidance_scale=0).class_label is None
    assert resolve(DEMO_UNCOND, class_label=3).guidance_scale == 1.5
    assert pointers(DEMO_UNCOND) == ["/class_label"]
    assert pointers(DEMO_UNCOND, guidance_scale=2) == ["/guidance_scale"]


def test_pipeline_without_upsampler_takes_only_false() -> None:
    assert resolve(BASE_ONLY, class_label=1).upsample is False
    assert resolve(BASE_ONLY, class_label=1, upsample=False).upsample is False
    assert pointers(BASE_ONLY, class_label=1, upsample=True) == ["/upsample"]


def test_options_for_the_upsampler_are_completed() -> None:
    request = resolve(class_label=1, upsample={"steps": 50})
    assert request.upsample
    assert request.upsample.model_dump() == {
        "steps": 50,
        "sampler": "ddim",
        "eta": 0.0,
        "strength": 1.0,
        "time_grid": "official",
        "thresholding": "clip",
    }
    assert resolve(class_label=1, upsample=False).upsample is False


def test_grid_and_threshold_are_those_asked_for() -> None:
    request = resolve(class_label=1, time_grid="karras", upsample={"thresholding": "dynamic"})
    assert (request.time_grid, request.thresholding) == ("karras", "clip")
    assert request.upsample
    assert (request.upsample.time_grid, request.upsample.thresholding) == ("official", "dynamic")


def test_unknown_grid_or_threshold_is_named() -> None:
    assert pointers(class_label=1, time_grid="log") == ["/time_grid"]
    assert pointers(class_label=1, thresholding=0.995) == ["/thresholding"]
    assert pointers(class_label=1, upsample={"time_grid": 3}) == ["/upsample/time_grid"]


@pytest.mark.parametrize(
    ("fields", "time_grid"),
    [
        ({"sampler": "ddim", "steps": 60}, "official"),
        ({"sampler": "ddim", "steps": 38}, "even"),
        ({"sampler": "ddpm", "steps": 38}, "official"),
        ({"sampler": "dpmpp_2m"}, "karras"),
        ({"sampler": "heun", "time_grid": None}, "karras"),
        ({"sampler": "heun", "time_grid": "official"}, "official"),
    ],
)
def test_request_that_names_no_grid_has_its_samplers_own(fields: dict[str, Any], time_grid: str) -> None:
    request = resolve(class_label=1, upsample=fields, **fields)
    assert request.time_grid == time_grid
    assert request.upsample
    assert request.upsample.time_grid == time_grid


def test_pipelines_grid_of_a_sampler_replaces_the_samplers_own_in_its_base() -> None:
    defaults = DEMO.defaults.model_copy(update={"time_grids": {"ddpm": "uniform", "ddim": "karras"}})
    other = DEMO.model_copy(update={"defaults": defaults})
    request = resolve(other, class_label=1, sampler="ddpm", upsample={"sampler": "ddpm"})
    assert request.upsample
    assert (request.time_grid, request.upsample.time_grid) == ("uniform", "official")
    assert resolve(other, class_label=1, sampler="ddpm", time_grid="official").time_grid == "official"
    assert resolve(other, class_label=1, sampler="heun").time_grid == "karras", "its own"
    assert resolve(other, kind="reconstruct", images=["a"], sampler="ddim").time_grid == "even", "of encodings"


def test_scale_of_eps_is_the_pipelines_unless_it_is_given() -> None:
    scaled = DEMO.model_copy(update={"defaults": DEMO.defaults.model_copy(update={"eps_scale": 1.02})})
    assert resolve(class_label=1).eps_scale == 1
    assert resolve(scaled, class_label=1).eps_scale == 1.02
    assert resolve(scaled, class_label=1, eps_scale=1.0).eps_scale == 1
    for wrong in (0.89, 1.11, 0, "1"):
        assert pointers(class_label=1, eps_scale=wrong) == ["/eps_scale"]
    assert resolve(scaled, kind="upsample", images=["a"]).eps_scale == 1
    assert resolve(scaled, kind="variation", images=["a"]).eps_scale == 1.02
    assert resolve(scaled, kind="reconstruct", images=["a"]).eps_scale == 1
    assert resolve(scaled, kind="reconstruct", images=["a"], eps_scale=1.01).eps_scale == 1.01


def test_pipeline_of_an_older_worker_offers_what_it_always_did() -> None:
    older = PipelineInfo.model_validate(DEMO.model_dump(exclude={"time_grids", "thresholdings", "sampler_notes"}))
    assert resolve(older, class_label=1).time_grid == "official"
    assert resolve(older, class_label=1, sampler="heun").time_grid == "official"
    assert pointers(older, class_label=1, time_grid="uniform", upsample={"thresholding": "none"}) == [
        "/time_grid",
        "/upsample/thresholding",
    ]


def test_request_from_before_there_was_a_choice_is_still_read() -> None:
    older = resolve(class_label=1).model_dump(exclude={"time_grid", "thresholding"})
    assert ResolvedRequest.model_validate(older) == resolve(class_label=1)


def test_minus_zero_is_zero() -> None:
    assert str(resolve(class_label=1, guidance_scale=-0.0).guidance_scale) == "0.0"


@given(
    value=st.one_of(
        st.text(), st.booleans(), st.none(), st.lists(st.integers()), st.dictionaries(st.text(), st.none())
    ),
    field=st.sampled_from(["steps", "n", "seed", "guidance_scale", "eta"]),
)
def test_numbers_are_never_made_from_anything_else(field: str, value: Any) -> None:
    nullable = field != "n"
    if value is None and nullable:
        return
    with pytest.raises(InvalidRequestError) as caught:
        JobRequest.parse(json.dumps({field: value}).encode())
    assert [each.pointer for each in caught.value.errors] == [f"/{field}"]


@given(st.binary(max_size=200))
def test_no_bytes_make_parsing_fail_in_another_way(body: bytes) -> None:
    with suppress(InvalidRequestError):
        JobRequest.parse(body)


@given(
    steps=st.integers(1, 1000),
    n=st.integers(1, 64),
    seed=st.integers(0, 2**63 - 1),
    scale=st.floats(0, 50),
    label=st.integers(0, 9),
)
def test_resolved_request_survives_json(steps: int, n: int, seed: int, scale: float, label: int) -> None:
    request = resolve(steps=steps, n=n, seed=seed, guidance_scale=scale, class_label=label)
    assert ResolvedRequest.model_validate(json.loads(json.dumps(request.model_dump()))) == request
