"""The service's calls as values, so that the blocking client and the other one send the same."""

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from PIL.Image import Image

from adm_client.errors import RefusedError
from adm_client.fields import Picture
from adm_client.models import File, JobList, JobPage, JobState, Model, ModelList, Status

T = TypeVar("T")
Param = str | int | list[str]

MAX_WAIT_SECONDS = 60  # the longest poll that the service holds
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call, and how its answer is read.

    repeatable: doing it twice does no harm, so it may be sent again when no answer came.
    """

    method: str
    path: str
    read: Callable[[httpx2.Response], T]
    params: Mapping[str, Param] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    repeatable: bool = True

    def answer(self, response: httpx2.Response) -> T:
        """What the answer holds. Raises: RefusedError."""
        if not response.is_success:
            raise RefusedError.of(response)
        return self.read(response)


def job_of(response: httpx2.Response) -> JobState:
    return JobState.model_validate_json(response.content)


def jobs_of(response: httpx2.Response) -> list[JobState]:
    return JobList.model_validate_json(response.content).data


def nothing_of(response: httpx2.Response) -> None:
    return None


def bytes_of(response: httpx2.Response) -> bytes:
    return response.content


def submit(fields: Mapping[str, Any], idempotency_key: str) -> Call[JobState]:
    return posted(fields, idempotency_key, job_of)


def posted(body: Mapping[str, Any], idempotency_key: str, read: Callable[[httpx2.Response], T]) -> Call[T]:
    headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
    return Call("POST", "/v1/jobs", read, headers=headers, content=json.dumps(body).encode())


def submit_many(
    items: Sequence[Mapping[str, Any]], common: Mapping[str, Any], idempotency_key: str
) -> Call[list[JobState]]:
    """All of the jobs are queued, or none."""
    return posted({**common, "items": list(items)}, idempotency_key, jobs_of)


def job(job_id: str, wait_seconds: int = 0) -> Call[JobState]:
    params = {"wait": min(wait_seconds, MAX_WAIT_SECONDS)} if wait_seconds else {}
    return Call("GET", f"/v1/jobs/{quote(job_id, safe='')}", job_of, params=params)


def jobs(
    status: Status | str | None,
    limit: int,
    after: str | None,
    model: str | None = None,
    class_label: int | str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Call[JobPage]:
    given = {"status": status, "limit": limit, "after": after, "model": model, "class_label": class_label}
    params: dict[str, Param] = {name: value for name, value in given.items() if value is not None}
    if metadata:
        params["metadata"] = [f"{key}={value}" for key, value in metadata.items()]
    return Call("GET", "/v1/jobs", lambda response: JobPage.model_validate_json(response.content), params=params)


def cancel(job_id: str) -> Call[JobState]:
    """Not repeatable: the second would say that the job has ended."""
    return Call("POST", f"/v1/jobs/{quote(job_id, safe='')}/cancel", job_of, repeatable=False)


def delete(job_id: str) -> Call[None]:
    """Repeatable, though the second may say that there is no such job: it is gone then, as it should be."""
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


def request_from_image(png: bytes) -> Call[dict[str, Any]]:
    headers = {"Content-Type": "application/octet-stream"}
    return Call("POST", "/v1/requests/from-image", lambda response: dict(response.json()), headers=headers, content=png)


def encoded(picture: Picture) -> bytes:
    """A picture as it is uploaded; not for one that is known by its id."""
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
    """The service that the same environment starts."""
    host = os.environ.get("ADM_HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{os.environ.get('ADM_PORT') or 8000}"


def connection(url: str | None, api_key: str | None, timeout: float) -> dict[str, Any]:
    """What a client of httpx2 is made with."""
    base_url, key = url or default_url(), api_key or os.environ.get("ADM_API_KEY")
    return {
        "base_url": base_url,
        "headers": {"User-Agent": "adm-client"} | ({"Authorization": f"Bearer {key}"} if key else {}),
        "timeout": timeout,
        # an environment's proxy would look for a service of this machine on its own
        "trust_env": urlsplit(base_url).hostname not in LOOPBACK,
    }
