"""Lists by model, class and metadata, each within what its caller may see."""

import asyncio
from typing import Any

import httpx2
import pytest

from jobs.contract.caller import Role
from jobs.queue.job_queue import MOST_READ
from tests.service.conftest import MakeKey, ToyWorker, body
from tests.service.test_jobs import is_problem


def post(client: httpx2.Client, headers: dict[str, str] | None = None, **fields: Any) -> str:
    answer = client.post("/v1/jobs", json=body(**fields), headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def listed(client: httpx2.Client, headers: dict[str, str] | None = None, **params: Any) -> list[str]:
    answer = client.get("/v1/jobs", params=params, headers=headers)
    assert answer.status_code == 200, answer.text
    return [each["id"] for each in answer.json()["data"]]


def test_list_by_model_class_and_metadata(client: httpx2.Client, fleet: ToyWorker) -> None:
    torus = post(client, metadata={"run": "a=b", "by": "x"})
    cone = post(client, class_label="cone", metadata={"run": "2"})
    free = post(client, model="demo-uncond", class_label=None, guidance_scale=0)
    assert listed(client) == [free, cone, torus]
    assert listed(client, model="demo") == [cone, torus]
    assert listed(client, model="none") == []
    assert listed(client, class_label="torus") == listed(client, class_label="4") == [torus]
    assert listed(client, class_label="None") == []
    assert listed(client, metadata="run=a=b") == [torus]
    assert listed(client, metadata=["run=a=b", "by=x"]) == [torus]
    assert listed(client, metadata=["run=a=b", "by=y"]) == []
    assert listed(client, metadata="run=") == []
    assert listed(client, model="demo", class_label="cone", metadata="run=2", status="completed") == []
    assert listed(client, model="", class_label="", status="", mine="") == [free, cone, torus]


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({"metadata": "run"}, "/metadata/0"),
        ({"metadata": "=x"}, "/metadata/0"),
        ({"metadata": ["a=b"] * 17}, "/metadata"),
        ({"mine": "yes"}, "/mine"),
    ],
)
def test_malformed_filter_is_refused(client: httpx2.Client, params: dict[str, Any], pointer: str) -> None:
    assert is_problem(client.get("/v1/jobs", params=params), 422, pointer)


def test_pages_of_a_filtered_list_contain_every_match_once(client: httpx2.Client, fleet: ToyWorker) -> None:
    wanted = [post(client, class_label="cone" if each % 3 == 0 else "torus") for each in range(12)][::3]
    found, params = list[str](), {"class_label": "cone", "limit": "2"}
    while True:
        page = client.get("/v1/jobs", params=params).json()
        found += [each["id"] for each in page["data"]]
        assert len(page["data"]) <= 2
        if not page["has_more"]:
            break
        params = params | {"after": page["next"]}
    assert found == wanted[::-1]


def test_page_of_a_filtered_list_reads_a_bounded_number_of_jobs_and_the_next_continues(
    client: httpx2.Client, fleet: ToyWorker
) -> None:
    oldest = post(client, class_label="cone")
    for _ in range(-(-MOST_READ // 64)):
        client.post("/v1/jobs", json={"items": [body(steps=1)] * 64})
    first = client.get("/v1/jobs", params={"class_label": "cone"}).json()
    assert (first["data"], first["has_more"]) == ([], True)
    second = client.get("/v1/jobs", params={"class_label": "cone", "after": first["next"]}).json()
    assert ([each["id"] for each in second["data"]], second["has_more"]) == ([oldest], False)


def test_filters_and_mine_never_widen_what_a_caller_sees(
    client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey
) -> None:
    ann, bob, root = make_key("ann"), make_key("bob"), make_key("root", Role.OPERATOR)
    anns, roots = post(client, ann, metadata={"run": "1"}), post(client, root, metadata={"run": "1"})
    for params in (
        {"model": "demo"},
        {"class_label": "torus"},
        {"metadata": "run=1"},
        {"mine": "true"},
        {"mine": "false"},
    ):
        assert listed(client, bob, **params) == []
        assert listed(client, ann, **params) == [anns]
    assert listed(client, root, metadata="run=1") == [roots, anns]
    assert listed(client, root, metadata="run=1", mine="true") == listed(client, root, mine="true") == [roots]


def test_page_of_large_jobs_ends_before_it_has_too_many_bytes_and_the_next_continues(
    client: httpx2.Client, fleet: ToyWorker
) -> None:
    """Metadata packs well, so that a small body and a small record may be a large part of a page."""
    metadata = {f"{number:02d}" + "k" * 62: "\u00e9" * 512 for number in range(16)}
    call = {"class_label": 1, "metadata": metadata, "items": [{}] * 30}
    made = [each["id"] for _ in range(3) for each in client.post("/v1/jobs", json=call).json()["data"]]
    seen, after = list[str](), ""
    while True:
        answer = client.get("/v1/jobs", params={"limit": 100, "after": after})
        page = answer.json()
        assert len(answer.content) < (1 << 20) + 1000
        seen += [each["id"] for each in page["data"]]
        if not page["has_more"]:
            break
        assert len(page["data"]) < 90
        after = page["next"]
    assert seen == made[::-1]


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/files/none"])
def test_lists_that_one_caller_reads_are_not_all_read_before_anothers_call(
    client: httpx2.Client, fleet: ToyWorker, make_key: MakeKey, address: str, path: str
) -> None:
    many, one = make_key("many"), make_key("one")
    posted = client.post("/v1/jobs", json={"items": [body() for _ in range(64)]}, headers=many)
    assert posted.status_code == 202
    num_lists, read = 60, list[int]()

    async def scenario() -> int:
        async with (
            httpx2.AsyncClient(base_url=address, timeout=300, limits=httpx2.Limits(max_connections=200)) as flood,
            httpx2.AsyncClient(base_url=address, timeout=300) as other,
        ):
            begun = asyncio.Event()

            async def read_list() -> None:
                answer = await flood.get("/v1/jobs", params={"limit": 100}, headers=many)
                read.append(answer.status_code)
                begun.set()

            tasks = [asyncio.create_task(read_list()) for _ in range(num_lists)]
            await begun.wait()
            answer = await other.get(path, headers=one)
            assert answer.status_code in (200, 404)
            before = len(read)
            await asyncio.gather(*tasks)
            return before

    before = asyncio.run(scenario())
    assert set(read) <= {200, 503}
    assert before < num_lists * 3 // 4
