"""The class of jobs from pictures, and the number of steps that the page shows for them."""

from collections.abc import Sequence

import pytest
from playwright.sync_api import (
    Page,
    expect,
)
from redis import Redis

from jobs.contract.pipelines import PipelineInfo, UpsampleDefaults
from jobs.redis import keys
from tests.jobs.samples import BASE, DEMO, DEMO_UNCOND, UPSAMPLER, png
from tests.service.page.painter import Painter, generate, open_page
from tests.service.page.test_from_pictures import choose
from worker.claim import Claim

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CONDITIONAL = DEMO.model_copy(update={"stages": (BASE.model_copy(update={"class_conditional": True}), UPSAMPLER)})
TORUS = [
    {"class_label": 4, "class_name": "torus", "probability": 0.875},
    {"class_label": 0, "class_name": "sphere", "probability": 0.125},
]


def announce(redis: Redis, pipeline: PipelineInfo) -> None:
    redis.hset(keys.PIPELINES, pipeline.id, pipeline.model_dump_json())


def score(painter: Painter, scores: Sequence[dict[str, object]] = TORUS) -> None:
    """Answer the `score` job that the page posts by itself."""
    claim = painter.claim()
    assert claim.request.kind == "score"
    painter.finish(claim, {"scores": [scores]})


def press(page: Page, painter: Painter, name: str) -> Claim:
    page.get_by_role("button", name=name, exact=True).click()
    return painter.claim()


def test_likeliest_class_of_the_picture_is_sent_unless_another_is_chosen(
    page: Page, painter: Painter, redis: Redis
) -> None:
    announce(redis, CONDITIONAL)
    open_page(page)
    chosen = page.get_by_label("Class of the picture")
    expect(chosen.locator("option:checked")).to_have_text("likeliest of the picture")
    choose(page, 0, png(50, 8))
    score(painter)
    expect(page.locator("#picture-class-note")).to_have_text("The classifier sees: torus, 87.5 %.")
    for name, kind in (("Reconstruct", "reconstruct"), ("Variations", "variation")):
        request = press(page, painter, name).request
        assert (request.kind, request.class_label) == (kind, 4)
    expect(page.locator("#request-facts")).to_contain_text("torus")
    chosen.select_option("star")
    assert press(page, painter, "Reconstruct").request.class_label == 9
    chosen.select_option("no class")
    assert press(page, painter, "Reconstruct").request.class_label is None


def test_morph_runs_under_the_class_of_its_first_picture(page: Page, painter: Painter, redis: Redis) -> None:
    announce(redis, CONDITIONAL)
    open_page(page)
    choose(page, 0, png(50, 8))
    score(painter)
    choose(page, 1, png(60, 8))
    request = press(page, painter, "Morph").request
    assert (request.kind, request.class_label) == ("interpolate", 4)


def test_new_picture_gets_its_own_class(page: Page, painter: Painter, redis: Redis) -> None:
    announce(redis, CONDITIONAL)
    open_page(page)
    choose(page, 0, png(50, 8))
    score(painter)
    page.get_by_label("Class of the picture").select_option("star")
    choose(page, 0, png(60, 8))
    score(painter, [{"class_label": 3, "class_name": "cone", "probability": 0.5}])
    assert press(page, painter, "Reconstruct").request.class_label == 3


def test_jobs_that_need_a_class_wait_for_the_answer_or_a_choice(page: Page, painter: Painter, redis: Redis) -> None:
    announce(redis, CONDITIONAL)
    open_page(page)
    choose(page, 0, png(50, 8))
    claim = painter.claim()
    note = page.locator("#picture-class-note")
    expect(note).to_have_text("Asking the classifier…")
    expect(page.get_by_role("button", name="Reconstruct")).to_be_disabled()
    expect(page.get_by_role("button", name="Upsample", exact=True)).to_be_enabled()  # this upsampler takes no class
    painter.finish(claim)  # without results
    expect(note).to_have_text("The classifier gave no answer: choose a class.")
    expect(page.get_by_role("button", name="Reconstruct")).to_be_disabled()
    page.get_by_label("Class of the picture").focus()
    page.keyboard.type("cone")
    page.keyboard.press("Tab")
    assert press(page, painter, "Reconstruct").request.class_label == 3


def test_class_is_chosen_by_hand_where_there_is_no_classifier(page: Page, painter: Painter, redis: Redis) -> None:
    kinds = tuple(each for each in CONDITIONAL.kinds if each != "score")
    announce(redis, CONDITIONAL.model_copy(update={"kinds": kinds}))
    open_page(page)
    choose(page, 0, png(50, 8))
    expect(page.locator("#picture-class-note")).to_have_text("Choose one first.")
    expect(page.get_by_role("button", name="Reconstruct")).to_be_disabled()
    page.get_by_label("Class of the picture").select_option("cube")
    assert press(page, painter, "Reconstruct").request.class_label == 1


def test_pipeline_whose_networks_take_no_class_offers_none(page: Page, painter: Painter, redis: Redis) -> None:
    announce(redis, CONDITIONAL)
    open_page(page)
    page.get_by_label("Model", exact=True).select_option(DEMO_UNCOND.id)
    expect(page.locator("#from-picture")).to_be_visible()
    expect(page.get_by_label("Class of the picture")).to_be_hidden()
    choose(page, 0, png(50, 8))
    request = press(page, painter, "Reconstruct").request  # and no score comes before it
    assert (request.kind, request.class_label) == ("reconstruct", None)
    page.get_by_label("Model", exact=True).select_option(CONDITIONAL.id)
    expect(page.get_by_label("Class of the picture")).to_be_visible()
    score(painter)


def test_upsampler_that_takes_a_class_gets_that_of_the_picture(page: Page, painter: Painter, redis: Redis) -> None:
    upsampler = UPSAMPLER.model_copy(update={"class_conditional": True})
    announce(redis, CONDITIONAL.model_copy(update={"stages": (CONDITIONAL.stages[0], upsampler)}))
    open_page(page)
    choose(page, 0, png(50, 8))
    score(painter)
    request = press(page, painter, "Upsample").request
    assert (request.kind, request.class_label) == ("upsample", 4)


@pytest.mark.parametrize(("steps", "strength", "taken"), [(20, 0.3, 6), (20, 1.0, 20), (25, 0.28, 7)])
def test_only_the_steps_that_are_taken_are_shown(
    page: Page, painter: Painter, redis: Redis, steps: int, strength: float, taken: int
) -> None:
    upsample = UpsampleDefaults(steps=steps, sampler="ddpm", eta=0.0, strength=strength)
    announce(redis, DEMO.model_copy(update={"defaults": DEMO.defaults.model_copy(update={"upsample": upsample})}))
    open_page(page)
    steps_shown = page.locator("#request-facts dt", has_text="Steps").locator("xpath=following-sibling::dd[1]")
    expect(page.locator("#upsample-label")).to_have_text(f"32 to 64 px, {taken} steps")
    page.get_by_label("Steps", exact=True).fill("25")
    painter.finish(generate(page, painter))
    expect(steps_shown).to_have_text(f"25 + {taken}")
    choose(page, 0, png(50, 8))
    painter.finish(press(page, painter, "Upsample"))
    expect(page.locator("#viewer-title")).to_have_text("Upsampled picture")
    expect(steps_shown).to_have_text(str(taken))
    painter.finish(press(page, painter, "Variations"))  # half of 25 steps
    expect(page.locator("#viewer-title")).to_have_text("Variation")
    expect(steps_shown).to_have_text(f"13 + {taken}")
