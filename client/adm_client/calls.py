"""The service's calls as values, which the blocking and the asyncio client share."""

import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from PIL.Image import Image

from adm_client.errors import RefusedError, SettingError
from adm_client.fields import Axis, JobFilter, Picture
from adm_client.models import File, GridState, JobList, JobPage, JobState, Model, ModelList, PipelineChange, Status

T = TypeVar("T")
Param = str | int | list[str]

MAX_WAIT_SECONDS = 60  # the longest wait that the service allows
HEADER_VALUE = re.compile(r"[!-~]*")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call, and the parser of its answer.

    repeatable: sending it twice is safe, so it may be sent again if no answer came.
    """

    method: str
    path: str
    read: Callable[[httpx2.Response], T]
    params: Mapping[str, Param] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    repeatable: bool = True

    def answer(self, response: httpx2.Response) -> T:
        """Parse the answer. Raises: RefusedError."""
        if not response.is_success:
            raise RefusedError.of(response)
        return self.read(response)


def job_of(response: httpx2.Response) -> JobState:
    return JobState.model_validate_json(response.content)


def jobs_of(response: httpx2.Response) -> list[JobState]:
    return JobList.model_validate_json(response.content).data


def grid_of(response: httpx2.Response) -> GridState:
    return GridState.model_validate_json(response.content)


def change_of(response: httpx2.Response) -> PipelineChange:
    return PipelineChange.model_validate_json(response.content)


def nothing_of(response: httpx2.Response) -> None:
    return None


def bytes_of(response: httpx2.Response) -> bytes:
    return response.content


def submit(fields: Mapping[str, Any], idempotency_key: str) -> Call[JobState]:
    return posted(fields, idempotency_key, job_of)


def posted(
    body: Mapping[str, Any], idempotency_key: str, read: Callable[[httpx2.Response], T], path: str = "/v1/jobs"
) -> Call[T]:
    headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
    return Call("POST", path, read, headers=headers, content=json.dumps(body).encode())


def submit_many(
    items: Sequence[Mapping[str, Any]], common: Mapping[str, Any], idempotency_key: str
) -> Call[list[JobState]]:
    """A call that queues all of the jobs, or none."""
    return posted({**common, "items": list(items)}, idempotency_key, jobs_of)


def create_grid(x: Axis, y: Axis | None, fields: Mapping[str, Any], idempotency_key: str) -> Call[GridState]:
    """A call that queues a job for each cell, all of them or none."""
    axes = {"x": axis_of(x)} if y is None else {"x": axis_of(x), "y": axis_of(y)}
    return posted({**fields, **axes}, idempotency_key, grid_of, "/v1/grids")


def axis_of(given: Axis) -> dict[str, Any]:
    """The body of an axis. Raises: ValueError unless it has exactly one field."""
    if len(given) != 1:
        raise ValueError(f"an axis is one field with its values, not {len(given)}")
    ((name, values),) = given.items()
    return {"field": name, "values": list(values)}


def grid(grid_id: str, wait_seconds: int = 0) -> Call[GridState]:
    params = {"wait": min(wait_seconds, MAX_WAIT_SECONDS)} if wait_seconds else {}
    return Call("GET", f"/v1/grids/{quote(grid_id, safe='')}", grid_of, params=params)


def cancel_grid(grid_id: str) -> Call[GridState]:
    return Call("POST", f"/v1/grids/{quote(grid_id, safe='')}/cancel", grid_of)


def delete_grid(grid_id: str) -> Call[None]:
    return Call("DELETE", f"/v1/grids/{quote(grid_id, safe='')}", nothing_of)


def sheet(grid_id: str) -> Call[bytes]:
    return Call("GET", f"/v1/grids/{quote(grid_id, safe='')}/sheet", bytes_of)


def job(job_id: str, wait_seconds: int = 0) -> Call[JobState]:
    params = {"wait": min(wait_seconds, MAX_WAIT_SECONDS)} if wait_seconds else {}
    return Call("GET", f"/v1/jobs/{quote(job_id, safe='')}", job_of, params=params)


def jobs(
    status: Status | str | None,
    limit: int,
    after: str | None,
    wanted: JobFilter,
) -> Call[JobPage]:
    given = {"status": status, "limit": limit, "after": after, **wanted}
    params: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if metadata := params.pop("metadata", None):
        params["metadata"] = [f"{key}={value}" for key, value in metadata.items()]
    return Call("GET", "/v1/jobs", lambda response: JobPage.model_validate_json(response.content), params=params)


def cancel(job_id: str) -> Call[JobState]:
    """Not repeatable: a second call would be refused because the job has ended."""
    return Call("POST", f"/v1/jobs/{quote(job_id, safe='')}/cancel", job_of, repeatable=False)


def delete(job_id: str) -> Call[None]:
    """Repeatable: a second call may find no such job, which is the wanted result."""
    return Call("DELETE", f"/v1/jobs/{quote(job_id, safe='')}", nothing_of)


def image(job_id: str, index: int) -> Call[bytes]:
    return Call("GET", f"/v1/jobs/{quote(job_id, safe='')}/images/{index}", bytes_of)


def upload(picture: bytes) -> Call[File]:
    headers = {"Content-Type": "application/octet-stream"}
    return Call(
        "POST",
        "/v1/files",
        lambda response: File.model_validate_json(response.content),
        headers=headers,
        content=picture,
    )


def delete_file(file_id: str) -> Call[None]:
    return Call("DELETE", f"/v1/files/{quote(file_id, safe='')}", nothing_of)


def models() -> Call[list[Model]]:
    return Call("GET", "/v1/models", lambda response: ModelList.model_validate_json(response.content).data)


def model(name: str) -> Call[Model]:
    path = f"/v1/models/{quote(name, safe='')}"
    return Call("GET", path, lambda response: Model.model_validate_json(response.content))


def change_pipelines(action: str, model: str, worker: str | None) -> Call[PipelineChange]:
    body = json.dumps({"action": action, "model": model, "worker": worker}).encode()
    headers = {"Content-Type": "application/json"}
    return Call("POST", "/v1/workers/changes", change_of, headers=headers, content=body, repeatable=False)


def pipeline_change(change_id: str) -> Call[PipelineChange]:
    return Call("GET", f"/v1/workers/changes/{quote(change_id, safe='')}", change_of)


def request_from_image(png: bytes) -> Call[dict[str, Any]]:
    headers = {"Content-Type": "application/octet-stream"}
    return Call("POST", "/v1/requests/from-image", lambda response: dict(response.json()), headers=headers, content=png)


def encoded(picture: Picture) -> bytes:
    """The bytes of a picture for an upload. Raises: TypeError for anything else, such as a file's id."""
    match picture:
        case bytes():
            return picture
        case Path():
            return picture.read_bytes()
        case Image():
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            return buffer.getvalue()
        case _:
            raise TypeError(f"a picture is bytes, a Path, an image of PIL or a file's id, not {type(picture).__name__}")


def default_url() -> str:
    """The URL of a service that is started with this process's environment variables."""
    host = os.environ.get("ADM_HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{os.environ.get('ADM_PORT') or 8000}"


def usable_url(url: str) -> str:
    """The URL. Raises: SettingError if it is not http or https, because calls would be repeated as if unanswered."""
    try:
        parsed, host = httpx2.URL(url), urlsplit(url).hostname
    except (httpx2.InvalidURL, ValueError) as error:
        raise SettingError(f"url: {url!r} is not a URL") from error
    if parsed.scheme not in ("http", "https") or not host:
        raise SettingError(f"url: {url!r} does not begin with http:// or https:// and a host")
    return url


def usable_key(key: str) -> str:
    """The key without the space around it, such as the line end of a file. Raises: SettingError, without the key."""
    key = key.strip()
    if not HEADER_VALUE.fullmatch(key):
        raise SettingError("the key, from api_key= or ADM_API_KEY, has characters that no key has")
    return key


def connection(url: str | None, api_key: str | None, timeout: float) -> dict[str, Any]:
    """The arguments for a client of httpx2. Raises: SettingError for a URL or a key that no call can be made with."""
    base_url = usable_url(url or default_url())
    key = usable_key(api_key or os.environ.get("ADM_API_KEY") or "")
    return {
        "base_url": base_url,
        "headers": {"User-Agent": "adm-client"} | ({"Authorization": f"Bearer {key}"} if key else {}),
        "timeout": timeout,
        # a proxy named in the environment would resolve loopback addresses to its own host
        "trust_env": urlsplit(base_url).hostname not in LOOPBACK,
    }
