"""/v1/jobs/{id}/images/{index}: an image as PNG, or reduced or converted to another format."""

import re
from functools import partial
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BeforeValidator

from jobs.contract.errors import ErrorKind, RefusedError
from jobs.queue.job_queue import Asked, PublishedImage
from pictures.decoding import PictureError
from pictures.thumbnails import Form, Format, formed
from service.accept_header import preferred_format
from service.authentication import CallerDep
from service.conditional_requests import answer_picture
from service.problems import documented, with_headers
from service.state import Service, ServiceDep
from service.strict_query import StrictQueryRoute

log = structlog.get_logger("service.images")
router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictQueryRoute)

INDEX = re.compile(r"0|[1-9][0-9]{0,9}")
BINARY = {"type": "string", "format": "binary"}
HEADERS = with_headers("ETag", "Cache-Control", "Vary")
IMAGE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The PNG; WebP or JPEG if Accept names one of them and prefers it",
        "content": {f"image/{name}": {"schema": BINARY} for name in ("png", "webp", "jpeg")},
    }
    | HEADERS,
    304: {"description": "The caller's copy is current"} | HEADERS,
}


def plain_digits(given: str) -> str:
    """Accept only plain digits, because an image has one address: +0, 00 and 0_0 are refused."""
    if not INDEX.fullmatch(given):
        raise ValueError("is not an index")
    return given


ImageIndex = Annotated[int, BeforeValidator(plain_digits), Path(ge=0)]
SIZE = Query(
    ge=16,
    le=1024,
    description="limit of a thumbnail's longest side, in pixels; a smaller image keeps its size",
)


@router.get(
    "/{job_id}/images/{index}",
    summary="An image, available from its `image` event on",
    response_class=Response,
    responses={**IMAGE, **documented(404, 409, 422, 503)},
)
async def get_image(
    request: Request,
    job_id: str,
    index: ImageIndex,
    service: ServiceDep,
    caller: CallerDep,
    size: Annotated[int | None, SIZE] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    image = await service.calls.run(partial(service.queue.image, job_id, index, caller), caller)
    form = form_of(image, preferred_format(request.headers.getlist("accept")), size)
    record = image.record
    # weak, because another version of the encoders may write other bytes
    etag = f'"{record.sha256}"' if form is None else f'W/"{record.sha256}-{form.size_px or "full"}.{form.format}"'
    return await answer_picture(
        partial(read_formed, service, Asked(job_id, caller), image, form),
        etag,
        "image/png" if form is None else f"image/{form.format}",
        image.kept_seconds,
        if_none_match,
        Vary="Accept",
    )


def form_of(image: PublishedImage, name: Format, size_px: int | None) -> Form | None:
    """The form to which an image's PNG is converted; None: it is sent unchanged."""
    if size_px is not None and max(image.record.width, image.record.height) <= size_px:
        size_px = None
    return None if name == "png" and size_px is None else Form(name, size_px)


async def read_formed(service: Service, target: Asked, image: PublishedImage, form: Form | None) -> bytes:
    """The bytes of an image in a form. Raises: RefusedError, also for a PNG that is damaged in the store."""
    record = image.record
    png = await service.store_calls.run(lambda: service.queue.image_bytes(target.job_id, record), target.caller)
    if form is None:
        return png
    max_pixels = min(service.settings.max_upload_pixels, record.width * record.height)
    try:
        return await service.conversions.run(lambda: formed(png, form, max_pixels), target.caller)
    except PictureError as error:
        log.error("damaged_image", job_id=target.job_id, index=record.index, error=str(error))
        detail = f"image {record.index} of job {target.job_id} {error}"
        raise RefusedError(ErrorKind.UNKNOWN_IMAGE, detail) from error
