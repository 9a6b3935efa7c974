"""The OpenAPI document: it equals openapi.json beside this file, and the service answers as it says.

After an intended change, `python -m tests.service.test_openapi` writes the golden file again.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from redis import Redis
from starlette.types import Message

from jobs.queue.events import EventKind
from jobs.settings import Settings
from service.app import create_app
from service.openapi import EVENT_DATA
from tests.service.conftest import ROOT, ToyWorker, body, wait_followed

GOLDEN = Path(__file__).with_name("openapi.json")
ROUTES = {
    "/v1/jobs": {"get", "post"},
    "/v1/jobs/{job_id}": {"get", "delete"},
    "/v1/jobs/{job_id}/cancel": {"post"},
    "/v1/jobs/{job_id}/events": {"get"},
    "/v1/jobs/{job_id}/images/{index}": {"get"},
    "/v1/jobs/{job_id}/images.zip": {"get"},
    "/v1/images.zip": {"get"},
    "/v1/grids": {"post"},
    "/v1/grids/{grid_id}": {"get", "delete"},
    "/v1/grids/{grid_id}/cancel": {"post"},
    "/v1/grids/{grid_id}/sheet": {"get"},
    "/v1/requests/from-image": {"post"},
    "/v1/images/generations": {"post"},
    "/v1/images/edits": {"post"},
    "/v1/images/variations": {"post"},
    "/v1/files": {"post"},
    "/v1/files/{file_id}": {"get", "delete"},
    "/v1/files/{file_id}/content": {"get"},
    "/v1/models": {"get"},
    "/v1/models/{name}": {"get"},
    "/v1/models/{name}/sweep": {"get"},
    "/v1/workers": {"get"},
    "/v1/workers/changes": {"post"},
    "/v1/workers/changes/{change_id}": {"get"},
    "/v1/queue": {"get"},
    "/v1/caller": {"get"},
    "/v1/runs": {"get"},
    "/v1/runs/{run_id}": {"get"},
    "/v1/runs/{run_id}/previews/{name}": {"get"},
    "/livez": {"get"},
    "/readyz": {"get"},
    "/healthz": {"get"},
    "/metrics": {"get"},
}


def document() -> dict[str, Any]:
    found = create_app(Settings()).openapi()
    found["info"]["version"] = "0"  # not what this file is to pin
    return found


def test_document_is_the_golden_one() -> None:
    assert document() == json.loads(GOLDEN.read_text())


def test_document_is_written_once_however_often_strangers_ask_for_it() -> None:
    app, bodies = create_app(Settings()), list[bytes]()
    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "GET", "path": "/openapi.json", "headers": headers, "query_string": b""}

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        bodies.extend([message["body"]] if "body" in message else [])

    async def ask_twice() -> None:
        for _ in range(2):
            await app(scope | {"client": ("127.0.0.1", 1), "state": {}}, receive, send)

    anyio.run(ask_twice)
    first, second = bodies
    assert first is second


def test_document_has_the_routes_of_the_contract() -> None:
    assert {path: set(methods) for path, methods in document()["paths"].items()} == ROUTES


def test_every_reference_of_the_document_leads_somewhere() -> None:
    text = json.dumps(document())
    schemas = document()["components"]["schemas"]
    references = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert references <= set(schemas)


@pytest.mark.slow
def test_service_answers_as_its_document_says(address: str, worker: ToyWorker, tmp_path: Path) -> None:
    """All checks of schemathesis, on valid and invalid requests; schemathesis.toml has what no schema can express."""
    program, settings = Path(sys.executable).with_name("schemathesis"), ROOT / "schemathesis.toml"
    options = ["--max-examples", "15", "--generation-deterministic", "--no-color"]
    command = [str(program), "--config-file", str(settings), "run", f"{address}/openapi.json", *options]
    ran = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert f"Selected: {sum(map(len, ROUTES.values()))}/" in ran.stdout


def test_document_announces_no_error_of_frameworks_and_every_one_of_ours() -> None:
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            announced = set(operation["responses"])
            assert announced >= {"400", "421", "431"}, (method, path)
            assert (announced >= {"401", "403"}) == (operation["security"] != []), (method, path)
            refuses_parameters = path.startswith("/v1/") and not path.startswith("/v1/images/")
            assert not refuses_parameters or "422" in announced, (method, path)
            assert ("415" in announced) == ("requestBody" in operation), (method, path)
    assert "HTTPValidationError" not in json.dumps(document())


def test_document_says_that_all_but_probes_may_need_a_key() -> None:
    described = document()
    assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    paths = described["paths"]
    free = {path for path, operations in paths.items() for each in operations.values() if each["security"] == []}
    assert free == {"/livez", "/readyz", "/healthz"}


def test_document_describes_the_data_of_every_event() -> None:
    content = document()["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]
    kinds = [each["properties"]["event"]["const"] for each in content["text/event-stream"]["itemSchema"]["oneOf"]]
    assert kinds == list(EventKind)


def test_data_of_events_are_as_the_document_says(client: httpx2.Client, worker: ToyWorker, redis: Redis) -> None:
    worker.hold()
    job_id = client.post("/v1/jobs", json=body(previews=True)).json()["id"]
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        wait_followed(redis, job_id)
        worker.release()
        lines = list(stream.iter_lines())
    kinds = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert {"queued", "started", "progress", "preview", "image", "completed"} == set(kinds)
    for kind, text in zip(kinds, data, strict=True):
        (model,) = EVENT_DATA[EventKind(kind)]
        model.model_validate_json(text)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(document(), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
