"""/v1/jobs/{id}/images.zip and /v1/images.zip: all images of a job, or chosen ones, sent one by one."""

import asyncio
import hashlib
import io
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, NamedTuple
from zipfile import ZipFile, ZipInfo

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import StringConstraints

from jobs.contract.errors import ErrorKind, RefusedError
from jobs.contract.job import ImageView, Job, JobStatus
from jobs.queue.job_queue import Asked, unknown_job
from service.authentication import CallerDep
from service.conditional_requests import matches
from service.problems import documented, with_headers
from service.routes_openai import read_png
from service.state import Service, ServiceDep
from service.strict_query import StrictQueryRoute

router = APIRouter(prefix="/v1", tags=["jobs"], route_class=StrictQueryRoute)

MAX_CHOSEN = 384  # images that fit in a URL within the limit for a request's head
ChosenImage = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,128}/[0-9]{1,10}$")]
CHOSEN = Query(min_length=1, max_length=MAX_CHOSEN, description="`job id/index`, given once for each image")
ZIP: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "PNGs, stored and not compressed again",
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
    | with_headers("ETag", "Cache-Control", "Content-Disposition"),
    304: {"description": "The caller's copy is current"} | with_headers("ETag", "Cache-Control"),
}


class Entry(NamedTuple):
    """One image of an archive: its file name, the time of its job, its reader, and its record."""

    name: str
    made_at: float
    target: Asked
    image: ImageView


class Outbox(io.RawIOBase):
    """The output of `ZipFile`. It is not seekable, so that the archive can be sent while it is written."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        """The bytes written since the last call."""
        taken = bytes(self._written)
        self._written.clear()
        return taken


@router.get(
    "/jobs/{job_id}/images.zip",
    summary="All images of a completed job",
    response_class=Response,
    responses={**ZIP, **documented(404, 409, 503)},
)
async def get_images_zip(
    job_id: str, service: ServiceDep, caller: CallerDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    target = Asked(job_id, caller)
    job = await service.lookups.ask(target)
    if not job.status.is_final:
        raise RefusedError(
            ErrorKind.IMAGE_NOT_READY, f"job {job_id} is {job.status}; its images are not all stored yet"
        )
    if job.status is not JobStatus.COMPLETED:
        raise RefusedError(ErrorKind.JOB_ENDED, f"job {job_id} is {job.status}, so it does not have all its images")
    if not job.images:
        raise RefusedError(ErrorKind.UNKNOWN_IMAGE, f"job {job_id} has no images, but results")
    entries = [Entry(f"{each.index:02d}.png", job.created_at, target, each) for each in job.images]
    return await answer_zip(service, entries, job_id, job.expires_at, if_none_match)


@router.get(
    "/images.zip",
    summary="Chosen images, of any jobs",
    response_class=Response,
    responses={**ZIP, **documented(404, 409, 422, 503)},
)
async def get_chosen_zip(
    service: ServiceDep,
    caller: CallerDep,
    image: Annotated[list[ChosenImage], CHOSEN],
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The archive has a folder for each job. The call fails if an image does not exist or is not stored yet."""
    chosen = dict.fromkeys((job_id, int(index)) for job_id, _, index in (each.partition("/") for each in image))
    targets = [Asked(each, caller) for each in dict.fromkeys(job_id for job_id, _ in chosen)]
    jobs = {each.id: each for each in await asyncio.gather(*map(service.lookups.ask, targets))}
    entries = [entry_of(jobs[job_id], index, Asked(job_id, caller)) for job_id, index in chosen]
    expires_at = min(each.expires_at for each in jobs.values())
    return await answer_zip(service, entries, "images", expires_at, if_none_match)


def entry_of(job: Job, index: int, target: Asked) -> Entry:
    """The archive entry of an image, in a folder for its job. Raises: RefusedError if the image does not exist."""
    for each in job.images:
        if each.index == index:
            return Entry(f"{job.id}/{index:02d}.png", job.created_at, target, each)
    kind = ErrorKind.UNKNOWN_IMAGE if job.status.is_final else ErrorKind.IMAGE_NOT_READY
    raise RefusedError(kind, f"image {index} of job {job.id} is not stored")


async def answer_zip(
    service: Service, entries: Sequence[Entry], name: str, expires_at: float, if_none_match: str | None
) -> Response:
    """The archive, or 304 for a caller who has it."""
    content = "".join(f"{each.name}{each.image.sha256}" for each in entries)
    seconds = max(0, int(expires_at - time.time()))
    headers = {
        "ETag": f'"{hashlib.sha256(content.encode()).hexdigest()}"',
        "Cache-Control": f"private, max-age={seconds}, immutable",
    }
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    headers["Content-Disposition"] = f'attachment; filename="{name}.zip"'
    first = await read_png(service, entries[0].target, entries[0].image.index)  # fails here if the store is unavailable
    return StreamingResponse(archive(service, entries, first), headers=headers, media_type="application/zip")


async def archive(service: Service, entries: Sequence[Entry], first: bytes) -> AsyncIterator[bytes]:
    """The bytes of the archive; equal images give equal bytes. It is aborted if its caller's key is revoked."""
    outbox = Outbox()
    with ZipFile(outbox, "w") as zipped:
        for number, each in enumerate(entries):
            if not await service.keyring.still_opens(each.target.caller):
                raise unknown_job(each.target.job_id)
            png = await read_png(service, each.target, each.image.index) if number else first
            zipped.writestr(ZipInfo(each.name, time.gmtime(each.made_at)[:6]), png)
            yield outbox.take()
    yield outbox.take()
