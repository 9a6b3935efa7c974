"""The package by itself: it installs and imports without the service, and knows the service's types."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import httpx2
import pytest
from pydantic import BaseModel, TypeAdapter

from adm_client import UnreachableError, models
from adm_client.events import Decoder
from adm_client.fields import AxisField, JobFields, Picture, UpsampleFields
from adm_client.patience import Attempts, Patience, asked_pause
from jobs.contract import grids
from jobs.contract.job import JobStatus
from jobs.contract.request import JobRequest, UpsampleOptions
from tests.jobs.samples import png
from tests.service.conftest import ToyWorker, body

ROOT = Path(__file__).parents[2]
NOT_NEEDED = ["redis", "rq", "fastapi", "torch", "numpy", "pydantic_settings", "structlog", "jobs", "service", "models"]


@pytest.mark.slow
def test_package_installs_and_imports_without_the_service(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "client", tmp_path / "client", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", tmp_path / "site", tmp_path / "client"], check=True, cwd=tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import adm_client; "
        f"assert adm_client.__file__.startswith({str(tmp_path)!r}), adm_client.__file__; "
        f"loaded = set({NOT_NEEDED!r}) & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert (tmp_path / "site" / "adm_client" / "py.typed").exists()


def types_of(schema: Any) -> Any:
    """The types in a JSON schema: names of fields, alternatives and values, without limits and descriptions."""
    if "anyOf" in schema:
        return sorted((types_of(each) for each in schema["anyOf"]), key=repr)
    found = {name: schema[name] for name in ("type", "enum", "$ref") if name in schema}
    if "items" in schema:
        found["items"] = types_of(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = types_of(schema["additionalProperties"])
    return found


@pytest.mark.parametrize(
    ("fields", "model", "wider"),
    [
        # `images` also takes pictures, which the client uploads first; `upsample` is the next case's
        (JobFields, JobRequest, {"images": Sequence[Picture] | None, "upsample": bool | UpsampleFields | None}),
        (UpsampleFields, UpsampleOptions, {}),
    ],
)
def test_fields_are_those_of_a_request_and_of_its_types(
    fields: type, model: type[BaseModel], wider: dict[str, object]
) -> None:
    """A checker accepts what the service accepts: no field is missing, none is narrower, and only `wider` are wider."""
    given, schema = get_type_hints(fields), model.model_json_schema()["properties"]
    assert given.keys() == schema.keys()
    assert {name: given[name] for name in wider} == wider
    same = given.keys() - wider.keys()
    found = {name: types_of(TypeAdapter(given[name]).json_schema()) for name in same}
    assert found == {name: types_of(schema[name]) for name in same}


def test_wider_fields_take_what_a_request_takes_too() -> None:
    schema = types_of(JobRequest.model_json_schema()["properties"]["images"])
    assert schema == types_of(TypeAdapter(Sequence[str] | None).json_schema())
    assert str in get_args(Picture)


def test_axes_of_a_grid_are_those_of_the_service() -> None:
    assert get_args(AxisField) == get_args(grids.AxisField)
    assert set(get_args(AxisField)) < set(JobRequest.model_fields)


def test_states_of_a_job_are_those_of_the_service() -> None:
    assert [*models.Status] == [*JobStatus]


def test_models_have_every_field_that_the_service_answers(client: httpx2.Client, fleet: ToyWorker) -> None:
    job_id = client.post("/v1/jobs", json=body(n=2, metadata={"a": "b"})).json()["id"]
    waiting = client.get(f"/v1/jobs/{job_id}").json()
    fleet.release()
    ended = client.get(f"/v1/jobs/{job_id}?wait=20").json()
    unreadable = client.post("/v1/jobs", json={"class_label": None, "upsample": False}).json()
    for answer in (waiting, ended, unreadable):
        assert models.JobState.model_validate(answer).model_dump(mode="json") == answer
    page = client.get("/v1/jobs").json()
    assert models.JobPage.model_validate(page).model_dump(mode="json") == page
    file = client.post("/v1/files", content=png(3)).json()
    assert models.File.model_validate(file).model_dump(mode="json") == file
    grid = client.post("/v1/grids", json={"x": {"field": "class_label", "values": [1, None]}}).json()
    assert models.GridState.model_validate(grid).model_dump(mode="json") == grid
    listed = client.get("/v1/models").json()
    assert models.ModelList.model_validate(listed).model_dump(mode="json") == listed


def test_fields_that_a_newer_service_adds_are_no_error(client: httpx2.Client, worker: ToyWorker) -> None:
    answer = client.post("/v1/jobs", json=body()).json()
    assert models.JobState.model_validate(answer | {"cost": 3}).id == answer["id"]


def test_stream_is_read_as_the_standard_says() -> None:
    lines = [
        ": open",
        "retry: 1000",
        "",
        "event: progress",
        "id: 1-0",
        'data: {"a":',
        "data: 1}",
        "",
        "id:2",
        "data:{}",
        "",
    ]
    decoder = Decoder()
    events = [event for line in lines if (event := decoder.feed(line)) is not None]
    assert [(each.kind, each.data, each.id) for each in events] == [("progress", {"a": 1}, "1-0"), ("message", {}, "2")]


def test_retry_after_is_kept_to_within_reason() -> None:
    given = ("7", "0", "86400", None, "Sun, 22 Nov 2026 21:00:00 GMT")
    assert [asked_pause(each) for each in given] == [7, 1, 60, None, None]


def test_pauses_grow_and_what_may_do_harm_twice_is_not_sent_twice() -> None:
    attempts = Attempts(Patience(60, 60), lambda _: None)
    pauses = [attempts.after_error(httpx2.ReadError("cut"), repeatable=True) for _ in range(4)]
    assert all(0.75 * usual <= pause <= usual for usual, pause in zip((0.5, 1, 2, 4), pauses, strict=True))
    assert attempts.after_error(httpx2.ConnectError("no"), repeatable=False) > 0  # nothing was sent
    with pytest.raises(UnreachableError, match="does not answer"):
        attempts.after_error(httpx2.ReadError("cut"), repeatable=False)
