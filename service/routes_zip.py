"""/v1/jobs/{id}/images.zip: all images of a job, an image at a time."""

import hashlib
import io
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any
from zipfile import ZipFile, ZipInfo

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse

from jobs.contract.errors import ErrorKind, RefusedError
from jobs.contract.job import Job, JobStatus
from jobs.job_queue import Asked
from service.authentication import CallerDep
from service.conditional import matches
from service.problems import documented, with_headers
from service.routes_openai import read_png
from service.state import Service, ServiceDep

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class Outbox(io.RawIOBase):
    """What `ZipFile` writes to; it cannot be sought, so that the archive can be sent as it grows."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = bytes(self._written)
        self._written.clear()
        return taken


@router.get(
    "/{job_id}/images.zip",
    summary="All images of a completed job",
    response_class=Response,
    responses={
        200: {
            "description": "PNGs, stored and not compressed again",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        }
        | with_headers("ETag", "Cache-Control", "Content-Disposition"),
        304: {"description": "As the caller holds it"} | with_headers("ETag", "Cache-Control"),
        **documented(404, 409, 503),
    },
)
async def get_images_zip(
    job_id: str, service: ServiceDep, caller: CallerDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    place = Asked(job_id, caller)
    job = await service.lookups.ask(place)
    if not job.status.is_final:
        raise RefusedError(ErrorKind.IMAGE_NOT_READY, f"job {job_id} is {job.status}; its images are not all there yet")
    if job.status is not JobStatus.COMPLETED:
        raise RefusedError(ErrorKind.JOB_ENDED, f"job {job_id} is {job.status}, so its images are not all there")
    if not job.images:
        raise RefusedError(ErrorKind.UNKNOWN_IMAGE, f"job {job_id} has no images, but results")
    etag = hashlib.sha256("".join(each.sha256 for each in job.images).encode()).hexdigest()
    seconds = max(0, int(job.expires_at - time.time()))
    headers = {"ETag": f'"{etag}"', "Cache-Control": f"private, max-age={seconds}, immutable"}
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    headers["Content-Disposition"] = f'attachment; filename="{job_id}.zip"'
    first = await read_png(service, place, job.images[0].index)  # a store that is away shows before the answer begins
    return StreamingResponse(archive(service, job, place, first), headers=headers, media_type="application/zip")


async def archive(service: Service, job: Job, place: Asked, first: bytes) -> AsyncIterator[bytes]:
    """The bytes of the archive; the same job gives the same ones."""
    outbox = Outbox()
    made_at = time.gmtime(job.created_at)[:6]
    with ZipFile(outbox, "w") as zipped:
        for number, image in enumerate(job.images):
            png = await read_png(service, place, image.index) if number else first
            zipped.writestr(ZipInfo(f"{image.index:02d}.png", made_at), png)
            yield outbox.take()
    yield outbox.take()
