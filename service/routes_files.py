"""/v1/files: uploads of pictures that jobs start from. A body is spooled to disk and decoded in a separate process."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import IO, Annotated, Any

from anyio import CancelScope
from fastapi import APIRouter, Header, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from jobs.contract.caller import Caller
from jobs.contract.errors import ErrorKind, FieldError, InvalidRequestError, RefusedError
from jobs.contract.json_bodies import pointer_to
from jobs.settings.environment import variable
from jobs.storage.files import FileInfo
from pictures.decoding import PictureError
from pictures.sandbox import BusyError, DecodeLimits, decode_in_sandbox
from service.authentication import CallerDep
from service.conditional_requests import answer_png
from service.incoming import body_of
from service.problems import RETRY_AFTER_SECONDS, documented, with_headers
from service.state import Service, ServiceDep
from service.strict_query import StrictQueryRoute

PREFIX = "/v1/files"
router = APIRouter(prefix=PREFIX, tags=["files"], route_class=StrictQueryRoute)

MAX_FRAMING_BYTES = 65_536  # of a multipart body, without the file
PATIENCE_SECONDS = 30.0  # longest wait for the decoding of others' pictures
DECODERS_BUSY = "too many pictures are being decoded (ADM_DECODE_PROCESSES)"
MACHINE_BUSY = "the service's machine is too busy to decode the picture"
MOST_FIELDS, MOST_FIELD_BYTES = 4, 1024  # of a form, without the file: the parser keeps them in memory
MEMORY_BYTES = 1 << 20  # of a body in memory; the rest is spooled to disk
BINARY = {"type": "string", "format": "binary"}
PICTURES = ("image/png", "image/jpeg", "image/webp")
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A PNG, JPEG or WebP picture; its format is detected from its bytes. A body of any type "
        "other than multipart/form-data is the picture itself.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": BINARY},
                    "additionalProperties": False,
                },
                "encoding": {"file": {"contentType": ", ".join(PICTURES)}},
            },
            **{each: {"schema": BINARY} for each in PICTURES},
        },
    }
}
PNG: dict[int | str, dict[str, Any]] = {
    200: {"description": "The PNG", "content": {"image/png": {"schema": BINARY}}}
    | with_headers("ETag", "Cache-Control"),
    304: {"description": "The caller's copy is current"} | with_headers("ETag", "Cache-Control"),
}


@router.post(
    "",
    status_code=201,
    summary="Upload a picture; the same bytes give the same id",
    openapi_extra=BODY,
    responses={201: with_headers("Location"), **documented(400, 413, 422, 429, 503, 507)},
)
async def create_file(request: Request, response: Response, service: ServiceDep, caller: CallerDep) -> FileInfo:
    await service.calls.run(partial(service.queue.quotas.take_post, caller), caller)
    async with uploaded(request) as body:
        info = await keep(request, service, caller, body)
    response.headers["Location"] = f"{service.settings.root_path}{PREFIX}/{info.id}"
    return info


@router.get("/{file_id}", summary="One file", responses=documented(404, 503))
async def get_file(file_id: str, service: ServiceDep, caller: CallerDep) -> FileInfo:
    return (await service.calls.run(partial(service.queue.files.get, file_id, caller), caller)).info


@router.get(
    "/{file_id}/content",
    summary="The picture as jobs see it: upright, 8-bit RGB, halved until it is at most twice the size they can use",
    response_class=Response,
    responses={**PNG, **documented(404, 503)},
)
async def get_file_content(
    file_id: str, service: ServiceDep, caller: CallerDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    record, _, kept_seconds = await service.calls.run(partial(service.queue.files.get, file_id, caller), caller)
    return await answer_png(
        lambda: service.store_calls.run(lambda: service.queue.files.png(file_id, caller), caller),
        record.png_sha256,
        kept_seconds,
        if_none_match,
    )


@router.delete(
    "/{file_id}",
    status_code=204,
    summary="Remove a file; queued jobs that need it will fail",
    responses=documented(404, 503),
)
async def delete_file(file_id: str, service: ServiceDep, caller: CallerDep) -> None:
    await service.store_calls.run(lambda: service.queue.files.delete(file_id, caller), caller)


@asynccontextmanager
async def form_of(request: Request, max_files: int, max_fields: int) -> AsyncIterator[FormData]:
    """Parse a form. Raises: HTTPException for an invalid body; RefusedError if too much is being received."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "the body must be multipart/form-data")  # Starlette parses others byte by byte
    parts = request.form(max_files=max_files, max_fields=max_fields, max_part_size=MOST_FIELD_BYTES)
    try:
        with body_of(request).held():
            async with parts as form:
                yield form
    except UnicodeError as error:  # Starlette handles only one kind of these
        raise HTTPException(400, "the form's charset is unknown or not that of its fields") from error


@asynccontextmanager
async def uploaded(request: Request) -> AsyncIterator[IO[bytes]]:
    """Yield the picture of a body, which is the picture itself or a form with it. Raises: InvalidRequestError."""
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        async with form_of(request, max_files=1, max_fields=MOST_FIELDS) as form:
            yield picture_of(form).file
    else:
        with body_of(request).held(), SpooledTemporaryFile(MEMORY_BYTES) as body:
            async for chunk in request.stream():
                body.write(chunk)
            body.seek(0)
            yield body


def picture_of(form: FormData) -> UploadFile:
    """The form's only field, its file. Raises: InvalidRequestError with every missing or unknown field."""
    wrong = [FieldError(pointer_to([name]), "unknown field") for name in sorted(set(form) - {"file"})]
    part = form.get("file")
    if len(form.getlist("file")) > 1:
        wrong.insert(0, FieldError("/file", "is given twice"))
    elif not isinstance(part, UploadFile):
        wrong.insert(0, FieldError("/file", "is required, as a file"))
    elif not wrong:
        return part
    raise InvalidRequestError(wrong)


async def keep(request: Request, service: Service, caller: Caller, body: IO[bytes]) -> FileInfo:
    """Store a caller's picture, unless it is stored already.

    A separate process decodes it, so that neither a slow store nor a slow picture delays other uploads.
    Raises: InvalidRequestError for a body that is not a picture or exceeds a limit; RefusedError if too many calls wait
    for the store, too much is kept, or the machine is too busy; ClientDisconnect.
    """
    files, settings = service.queue.files, service.settings

    def look(sha256: str) -> tuple[int, FileInfo | None]:
        short_side_px = service.queue.fleet.read().short_side_px
        present = files.present(sha256, short_side_px, caller)
        if present is None:
            files.refuse_if_full(sha256, caller)
        return short_side_px, present

    sha256, num_bytes = await run_in_threadpool(hash_of, body, settings.max_upload_bytes)
    short_side_px, present = await service.store_calls.run(partial(look, sha256), caller)
    if present is not None:
        return present
    limits = DecodeLimits(settings.max_upload_pixels, settings.decode_cpu_seconds, settings.decode_memory_bytes)
    try:
        async with while_connected(request), service.decoding.turn(caller.id, PATIENCE_SECONDS, DECODERS_BUSY):
            picture = await decode_in_sandbox(body, short_side_px, limits)
    except PictureError as error:
        named = f" ({variable(error.limit)})" if error.limit else ""
        raise InvalidRequestError([FieldError("/file", f"{error}{named}")]) from error
    except BusyError as error:
        raise RefusedError(ErrorKind.UNAVAILABLE, MACHINE_BUSY, retry_after_seconds=RETRY_AFTER_SECONDS) from error
    return await service.store_calls.run(partial(files.add, sha256, num_bytes, picture, short_side_px, caller), caller)


@asynccontextmanager
async def while_connected(request: Request) -> AsyncIterator[None]:
    """Cancel the block if the client disconnects; the request's body must have been read.

    Raises: ClientDisconnect.
    """

    async def watch(scope: CancelScope) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    gone = True
    with CancelScope() as scope:
        watcher = asyncio.create_task(watch(scope))
        try:
            yield
            gone = False
        finally:
            watcher.cancel()
    if gone:
        raise ClientDisconnect


def hash_of(body: IO[bytes], max_bytes: int) -> tuple[str, int]:
    """Return the SHA-256 and the length of a body, read piece by piece.

    Raises: HTTPException 413 for one that is too long.
    """
    digest, num_bytes = hashlib.sha256(), 0
    while chunk := body.read(MEMORY_BYTES):
        digest.update(chunk)
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise HTTPException(413, f"a file may have at most {max_bytes} bytes")
    return digest.hexdigest(), num_bytes
