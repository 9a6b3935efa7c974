"""Standard clients with keys: what they make is their caller's, and nobody else's."""

import io
from zipfile import ZipFile

import httpx2
import openai
import pytest
from openai import OpenAI

from adm_client import Client, RefusedError
from tests.jobs.samples import png
from tests.service.conftest import MakeKey, ToyWorker
from tests.service.test_jobs import is_problem
from tests.service.test_scope import Callers, callers

__all__ = ["callers"]


def key_of(headers: dict[str, str]) -> str:
    return headers["Authorization"].partition(" ")[2]


def test_openai_client_makes_jobs_of_its_keys_caller(
    address: str, client: httpx2.Client, fleet: ToyWorker, callers: Callers
) -> None:
    fleet.release()
    with OpenAI(base_url=f"{address}/v1", api_key=key_of(callers.ann), max_retries=0) as ai:
        (image,) = ai.images.generate(prompt="torus", response_format="url").data or []
        assert len(ai.images.edit(image=png(9), prompt="cone").data or []) == 1
        assert [each.type for each in ai.images.generate(prompt="cone", stream=True)] == ["image_generation.completed"]
    assert image.url is not None
    assert httpx2.get(image.url, headers=callers.ann, timeout=60).content == png(0)
    assert httpx2.get(image.url, headers=callers.bob, timeout=60).status_code == 404
    assert httpx2.get(image.url, timeout=60).status_code == 401
    jobs = [len(client.get("/v1/jobs", headers=each).json()["data"]) for each in callers]
    assert jobs == [3, 0, 3]


def test_openai_client_with_a_wrong_key_raises_what_it_raises_elsewhere(address: str, callers: Callers) -> None:
    with OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0) as ai:
        with pytest.raises(openai.AuthenticationError):
            ai.images.generate(prompt="torus")
        with pytest.raises(openai.AuthenticationError):
            ai.models.list()


def test_key_that_one_caller_used_is_free_for_another(address: str, fleet: ToyWorker, callers: Callers) -> None:
    fleet.release()
    for each in (callers.ann, callers.bob):
        with OpenAI(base_url=f"{address}/v1", api_key=key_of(each), max_retries=0) as ai:
            answer = ai.images.with_raw_response.generate(prompt="torus", extra_headers={"Idempotency-Key": "one"})
            assert "Idempotency-Replayed" not in answer.headers


def test_zip_is_its_callers(client: httpx2.Client, fleet: ToyWorker, callers: Callers) -> None:
    fleet.release()
    job = client.post("/v1/jobs", json={"class_label": 4}, headers=callers.ann | {"Prefer": "wait=30"}).json()
    path = f"/v1/jobs/{job['id']}/images.zip"
    own, operators = client.get(path, headers=callers.ann), client.get(path, headers=callers.operator)
    assert ZipFile(io.BytesIO(own.content)).namelist() == ["00.png"]
    assert own.content == operators.content
    assert is_problem(client.get(path, headers=callers.bob), 404)
    assert is_problem(client.get(path), 401)


def test_client_package_sends_its_key_and_sees_its_own_jobs(
    address: str, fleet: ToyWorker, callers: Callers, make_key: MakeKey
) -> None:
    fleet.release()
    with Client(address, key_of(callers.ann)) as ann, Client(address, key_of(callers.bob)) as bob:
        job = ann.generate(class_label="torus").job
        assert [each.id for each in ann.jobs().data] == [job.id]
        assert bob.jobs().data == []
        with pytest.raises(RefusedError, match="404: no job"):
            bob.job(job.id)
        with pytest.raises(RefusedError, match="404: no job"):
            list(bob.events(job.id))
    with Client(address) as nobody, pytest.raises(RefusedError, match=r"401: a key is needed.*ADM_API_KEY"):
        nobody.models()
