"""OpenAI's own client against the service: what its users write works, and fails as they expect."""

import asyncio
import base64
from collections.abc import Iterator
from threading import Thread
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from redis import Redis

from jobs.contract.request import MAX_IMAGES
from jobs.settings import Settings
from tests.jobs.samples import png
from tests.service.conftest import ToyWorker, running_service, wait_followed
from tests.waiting import eventually

EXTRAS = {"guidance_scale": 2.5, "steps": 10, "sampler": "ddim", "seed": 7}


@pytest.fixture
def ai(address: str, worker: ToyWorker, client: httpx2.Client) -> Iterator[OpenAI]:
    eventually(lambda: bool(client.get("/v1/models").json()["data"]), "the worker is known")
    with OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0, timeout=60) as ai:
        yield ai


def decoded(images: openai.types.ImagesResponse) -> list[bytes]:
    return [base64.b64decode(each.b64_json or "") for each in images.data or []]


def newest_job(client: httpx2.Client) -> dict[str, Any]:
    job: dict[str, Any] = client.get("/v1/jobs").json()["data"][0]
    return job


def test_images_are_those_of_a_job_with_the_fields_given(ai: OpenAI, client: httpx2.Client) -> None:
    made = ai.images.generate(model="demo", prompt="torus", n=2, size="64x64", user="u", extra_body=EXTRAS)
    assert decoded(made) == [png(0), png(1)]
    job = newest_job(client)
    asked = {"class_label": 4, "n": 2, "user": "u", "previews": False, "priority": "normal", **EXTRAS}
    assert {name: job["request"][name] for name in asked} == asked
    assert job["request"]["upsample"]
    assert (made.created, made.output_format) == (int(job["created_at"]), "png")
    assert made.usage is not None
    assert made.usage.output_tokens == made.usage.total_tokens == job["usage"]["steps"]


def test_url_is_absolute_and_leads_to_the_image(ai: OpenAI, address: str) -> None:
    (image,) = ai.images.generate(prompt="4", response_format="url").data or []
    assert image.url is not None
    assert image.url.startswith(f"{address}/v1/jobs/")
    assert (image.b64_json, httpx2.get(image.url, timeout=60).content) == (None, png(0))


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    ("trusted", "scheme"), [("127.0.0.1", "https"), ("127.0.0.0/8", "https"), ("", "http"), ("203.0.113.9", "http")]
)
def test_scheme_of_a_url_is_what_a_trusted_proxy_says_and_no_other_address(
    service_settings: Settings, worker: ToyWorker, trusted: str, scheme: str
) -> None:
    """Otherwise any caller could have links made that lead their readers elsewhere, or back to plain HTTP."""
    with running_service(service_settings, ADM_TRUSTED_PROXIES=trusted) as (address, _, _):
        with OpenAI(base_url=f"{address}/v1", api_key="x", default_headers={"X-Forwarded-Proto": "https"}) as ai:
            (image,) = ai.images.generate(prompt="4", response_format="url").data or []
        assert image.url is not None
        assert image.url.startswith(f"{scheme}://{address.removeprefix('http://')}/v1/jobs/")


def test_size_of_the_base_stage_leaves_the_upsampler_out(ai: OpenAI, client: httpx2.Client) -> None:
    ai.images.generate(prompt="torus", size="32x32")
    assert newest_job(client)["request"]["upsample"] is False


def test_empty_prompt_means_no_class(ai: OpenAI, client: httpx2.Client) -> None:
    ai.images.generate(prompt=" ")
    assert newest_job(client)["request"]["class_label"] is None


def test_fields_that_mean_nothing_here_are_named(ai: OpenAI) -> None:
    answer = ai.images.with_raw_response.generate(prompt="torus", quality="high", background="opaque", partial_images=2)
    assert answer.headers["X-ADM-Ignored-Fields"] == "background, quality, partial_images"
    assert decoded(answer.parse()) == [png(0)]


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"prompt": "a photo of a cat"}, "prompt", "there are: sphere, cube, cylinder, cone, torus"),
        ({"prompt": "10"}, "prompt", "there are 0 to 9"),
        ({"prompt": "x" * 300}, "prompt", "at most 256 characters"),
        ({"prompt": ["torus"]}, "prompt", "valid string"),
        ({"prompt": None}, "prompt", "valid string"),
        ({"n": 0}, "n", "must be at least 1"),
        ({"n": MAX_IMAGES + 1}, "n", "must be at most 64"),
        ({"size": "1024x1024"}, "size", "makes 32x32 or 64x64"),
        ({"size": "large"}, "size", "match pattern"),
        ({"size": "32x32", "extra_body": {"upsample": True}}, "size", "contradicts upsample"),
        ({"model": "dall-e-3"}, "model", "there are: demo"),
        ({"output_format": "webp"}, "output_format", "must be 'png'"),
        ({"stream": True, "response_format": "url"}, "response_format", "b64_json"),
        ({"extra_body": {"steps": 0}}, "steps", "must be at least 1"),
        ({"extra_body": {"steps": "25"}}, "steps", "valid integer"),
        ({"extra_body": {"kind": "score"}}, "kind", "unknown field"),
        ({"extra_body": {"webhook_url": "http://x"}}, "webhook_url", "unknown field"),
        ({"extra_body": {"images": []}}, "images", "unknown field"),
    ],
)
def test_wrong_field_is_a_bad_request_that_names_it(ai: OpenAI, fields: dict[str, Any], param: str, text: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ai.images.generate(**{"prompt": "torus", **fields})
    assert (caught.value.type, caught.value.param) == ("invalid_request_error", param)
    assert text in caught.value.message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"prompt":"torus","prompt":"cone"}', b'{"steps":NaN}'])
def test_body_that_is_no_request_is_refused_in_the_envelope(client: httpx2.Client, content: bytes) -> None:
    answer = client.post("/v1/images/generations", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_refusals_before_any_route_come_in_the_envelope_too(client: httpx2.Client) -> None:
    other_site = client.post("/v1/images/generations", json={}, headers={"Origin": "http://evil.example"})
    no_json = client.post("/v1/images/generations", content=b"prompt=torus")
    too_large = client.post("/v1/images/generations", content=b"x" * 70_000)
    for answer, status in ((other_site, 403), (no_json, 415), (too_large, 413)):
        assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_full_queue_is_an_internal_server_error_that_says_when_to_come_again(
    ai: OpenAI, worker: ToyWorker, client: httpx2.Client
) -> None:
    worker.hold()
    long = {"class_label": 1, "n": 64, "steps": 1000}
    while client.post("/v1/jobs", json=long).status_code == 202:
        pass
    with pytest.raises(openai.InternalServerError) as caught:
        ai.images.generate(prompt="torus")
    assert (caught.value.status_code, caught.value.code) == (503, "queue-full")
    assert int(caught.value.response.headers["Retry-After"]) >= 1


def test_stream_sends_partial_images_and_then_each_image(
    ai: OpenAI, worker: ToyWorker, client: httpx2.Client, redis: Redis
) -> None:
    worker.hold()
    stream = ai.images.generate(
        prompt="torus", n=2, stream=True, partial_images=3, extra_body={"steps": 1, "upsample": False}
    )
    wait_followed(redis, newest_job(client)["id"])
    worker.release()
    events = list(stream)
    assert [each.type for each in events] == ["image_generation.partial_image"] + ["image_generation.completed"] * 2
    assert [base64.b64decode(each.b64_json) for each in events] == [png(1), png(0), png(1)]
    first, *_, last = events
    assert first.type == "image_generation.partial_image"
    assert last.type == "image_generation.completed"
    assert (first.partial_image_index, first.size) == (0, "2x2")
    assert (last.usage.output_tokens, last.size) == (1, "2x2")


def test_stream_of_a_job_that_somebody_cancels_raises(ai: OpenAI, worker: ToyWorker, client: httpx2.Client) -> None:
    worker.hold()
    stream = ai.images.generate(prompt="torus", stream=True)
    client.post(f"/v1/jobs/{newest_job(client)['id']}/cancel")
    with pytest.raises(openai.APIError, match="was cancelled"):
        list(stream)


def test_job_that_somebody_cancels_is_a_conflict(ai: OpenAI, worker: ToyWorker, client: httpx2.Client) -> None:
    worker.hold()

    def cancel_when_there() -> None:
        eventually(lambda: bool(client.get("/v1/jobs").json()["data"]), "the job is there")
        client.post(f"/v1/jobs/{newest_job(client)['id']}/cancel")

    canceller = Thread(target=cancel_when_there)
    canceller.start()
    with pytest.raises(openai.ConflictError, match="was cancelled"):
        ai.images.generate(prompt="torus")
    canceller.join()


def give_up(ai: OpenAI, client: httpx2.Client, **options: Any) -> None:
    """Ask for an image, and end the request when its job is there."""

    async def ask() -> None:
        async with AsyncOpenAI(base_url=ai.base_url, api_key="x", max_retries=0) as own:
            asked = asyncio.create_task(own.images.generate(prompt="torus", **options))
            while not client.get("/v1/jobs").json()["data"]:
                await asyncio.sleep(0.01)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked

    asyncio.run(ask())


def test_client_that_gives_up_waiting_cancels_its_job(ai: OpenAI, worker: ToyWorker, client: httpx2.Client) -> None:
    worker.hold()
    give_up(ai, client)
    eventually(lambda: newest_job(client)["status"] == "cancelled", "the job is cancelled")


def test_client_that_closes_its_stream_cancels_its_job(ai: OpenAI, worker: ToyWorker, client: httpx2.Client) -> None:
    worker.hold()
    stream = ai.images.generate(prompt="torus", stream=True)
    assert newest_job(client)["status"] in ("queued", "in_progress")
    stream.close()
    eventually(lambda: newest_job(client)["status"] == "cancelled", "the job is cancelled")


def test_same_idempotency_key_gives_the_same_job_and_it_outlives_its_caller(
    ai: OpenAI, worker: ToyWorker, client: httpx2.Client
) -> None:
    worker.hold()
    key = {"Idempotency-Key": "mine"}
    give_up(ai, client, extra_headers=key)
    worker.release()
    again = ai.images.with_raw_response.generate(prompt="torus", extra_headers=key)
    assert (again.headers["Idempotency-Replayed"], decoded(again.parse())) == ("true", [png(0)])
    assert len(client.get("/v1/jobs").json()["data"]) == 1


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # OpenAI's own word on its own call
def test_variation_starts_from_the_picture(ai: OpenAI, client: httpx2.Client) -> None:
    made = ai.images.create_variation(image=png(9), model="demo", n=2, extra_body={"strength": 0.4, "prompt": "cube"})
    assert len(decoded(made)) == 2
    request = newest_job(client)["request"]
    assert (request["kind"], request["strength"], request["n"], request["class_label"]) == ("variation", 0.4, 2, 1)
    assert client.get(f"/v1/files/{request['images'][0]}").status_code == 200


def test_edit_is_a_variation_towards_the_class_of_the_prompt(ai: OpenAI, client: httpx2.Client) -> None:
    made = ai.images.edit(image=png(9), prompt="cone", extra_body={"strength": 0.7, "guidance_scale": 3})
    assert decoded(made) == [png(0)]
    request = newest_job(client)["request"]
    assert (request["kind"], request["class_label"], request["strength"]) == ("variation", 3, 0.7)


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
def test_form_that_is_not_multipart_is_refused_unread(client: httpx2.Client, path: str) -> None:
    """Starlette parses a form of millions of empty fields byte by byte, during which nobody else is served."""
    head = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post(path, content=b"&" * 1000, headers=head).status_code == 415


def test_mask_and_what_is_no_picture_are_refused_by_name(ai: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as masked:
        ai.images.edit(prompt="cone", image=png(9), mask=png(1))
    with pytest.raises(openai.BadRequestError) as damaged:
        ai.images.edit(prompt="cone", image=b"no picture")
    assert (masked.value.param, damaged.value.param) == ("mask", "image")


@pytest.mark.parametrize(
    ("files", "param"),
    [
        ([("image", png(9)), ("n", b"1"), ("n", b"2")], "n"),
        ([("image", png(9)), ("metadata", b'{"a": "1", "a": "2"}')], None),
        ([("image", png(9)), ("image[]", png(8))], "image"),
        ([("image[]", png(9)), ("image[]", png(8))], "image"),
    ],
)
def test_part_of_a_form_that_is_given_twice_is_refused(
    client: httpx2.Client, files: list[tuple[str, bytes]], param: str | None
) -> None:
    parts = [(name, ("x.png", data) if name.startswith("image") else (None, data)) for name, data in files]
    refused = client.post("/v1/images/variations", files=parts)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_models_are_listed_and_retrieved(ai: OpenAI) -> None:
    assert [each.id for each in ai.models.list()] == ["demo", "demo-uncond"]
    assert (ai.models.retrieve("demo").id, ai.models.retrieve("demo").owned_by) == ("demo", "adm")
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("dall-e-3")


async def generate_async(address: str) -> tuple[list[bytes], list[str]]:
    async with AsyncOpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as ai:
        made = await ai.images.generate(prompt="cone", response_format="b64_json")
        stream = await ai.images.generate(prompt="cone", stream=True)
        return decoded(made), [each.type async for each in stream]


def test_async_client_gets_the_same(ai: OpenAI, address: str) -> None:
    images, events = asyncio.run(generate_async(address))
    assert (images, events) == ([png(0)], ["image_generation.completed"])


def test_many_images_are_sent_without_keeping_them_all_in_memory(ai: OpenAI) -> None:
    assert decoded(ai.images.generate(prompt="torus", n=MAX_IMAGES)) == [png(index) for index in range(MAX_IMAGES)]
