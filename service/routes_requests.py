"""/v1/requests: the request behind an image."""

from functools import partial

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from jobs.contract.errors import FieldError, InvalidRequestError
from jobs.contract.request import JobRequest
from jobs.contract.request_from_image import CHUNK, request_of
from pictures.text_chunks import text_chunk
from service.authentication import CallerDep
from service.problems import documented
from service.routes_files import BODY, uploaded
from service.state import ServiceDep
from service.strict_query import StrictQueryRoute

FROM_IMAGE = "/v1/requests/from-image"
router = APIRouter(tags=["jobs"], route_class=StrictQueryRoute)


@router.post(
    FROM_IMAGE,
    response_model_exclude_unset=True,
    summary="The request that reproduces a PNG of this service, for POST /v1/jobs",
    openapi_extra=BODY,
    responses=documented(400, 413, 422, 429, 503),
)
async def request_from_image(request: Request, service: ServiceDep, caller: CallerDep) -> JobRequest:
    await service.calls.run(partial(service.queue.quotas.take_post, caller), caller)  # like an upload
    async with uploaded(request) as body:
        text = await run_in_threadpool(text_chunk, body, CHUNK)
    if text is None:
        raise InvalidRequestError([FieldError("/file", f"is no PNG of this service: it has no {CHUNK!r} text")])
    return request_of(text)
