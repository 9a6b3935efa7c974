"""GET /v1/jobs: the list of jobs, in pages, with filters."""

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BeforeValidator, StringConstraints, WithJsonSchema

from jobs.contract.job import JobPage, JobStatus
from jobs.redis import keys
from jobs.views.filters import JobFilter
from service.authentication import CallerDep
from service.model_response import ModelResponse
from service.problems import documented
from service.state import ServiceDep
from service.strict_query import StrictQueryRoute

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictQueryRoute)

PAGE_LIMIT = 20


def unless_empty(default: int | None, schema: dict[str, Any]) -> tuple[BeforeValidator, WithJsonSchema]:
    """Let a parameter be empty, as a form may send it; an empty one counts as not given."""
    described = WithJsonSchema({"anyOf": [schema, {"const": ""}], "default": default})
    return BeforeValidator(lambda value: default if value == "" else value), described


STATUS = unless_empty(None, {"enum": list(JobStatus)})
LIMIT = unless_empty(PAGE_LIMIT, {"type": "integer", "minimum": 1, "maximum": 100})
AFTER = unless_empty(None, {"type": "string", "pattern": f"^{keys.INDEX_MEMBER.pattern}$"})
Pair = Annotated[str, StringConstraints(pattern="^[^=]+=", max_length=64 + 1 + 512)]
METADATA = Query(max_length=16, description="`key=value` of the job's metadata; may be repeated, and all must match")
MINE = Query(description="`true`: only the caller's own jobs; operators see all jobs otherwise")


@router.get("", response_model=JobPage, summary="Jobs, newest first", responses=documented(422, 503))
async def list_jobs(
    service: ServiceDep,
    caller: CallerDep,
    status: Annotated[JobStatus | None, *STATUS] = None,
    limit: Annotated[int, Query(ge=1, le=100), *LIMIT] = PAGE_LIMIT,
    after: Annotated[str | None, Query(description="`next` of the page before"), *AFTER] = None,
    model: Annotated[str, Query(description="a pipeline")] = "",
    class_label: Annotated[str, Query(description="index or name of a class")] = "",
    metadata: Annotated[list[Pair] | None, METADATA] = None,
    mine: Annotated[Literal["true", "false", ""], MINE] = "false",
) -> Response:
    """A call reads 500 jobs at most, so a page of a filtered list may have fewer jobs than `limit`, or none. A page has
    1 MiB at most, so a page of large jobs may have fewer, too. More pages follow as long as `has_more` is true."""
    wanted = JobFilter(model or None, class_label or None, tuple(metadata or ()))
    read = partial(service.queue.page, status, limit, after, caller, mine=mine == "true", wanted=wanted)
    return ModelResponse(await service.long_calls.run(read, caller))
