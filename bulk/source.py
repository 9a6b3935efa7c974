"""What makes the images of a run, and the requests that it answers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from bulk.base_samples import BaseSamples, name_of
from bulk.outputs import Output
from bulk.plan import Chunk
from jobs.contract.kinds import FIELDS
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import ResolvedRequest

EACH_ITS_OWN = {"class_label", "n", "seed"}
OF_OTHER_KINDS = {"kind", "images", "seeds", "strength", "class_weights"}
OF_NO_PIXEL = {"previews", "priority", "expires_in", "user", "metadata", "webhook_url"}


@dataclass(frozen=True)
class Work:
    """The chunks of a run that are missing, and what to do with them.

    request holds what they have in common, base what they start from, if not from noise. on_numerics is told under
    which fingerprint images are made, on_images how many were kept, on_note what is waited for.
    """

    run_id: str
    output: Output
    size: int
    request: ResolvedRequest
    chunks: Iterator[Chunk]
    base: BaseSamples | None
    on_numerics: Callable[[str], None]
    on_images: Callable[[int], None]
    on_note: Callable[[str], None]


class Source(Protocol):
    """A machine's devices, or a service."""

    def describe(self, model: str) -> PipelineInfo:
        """A pipeline as it announces itself. Raises: BulkError where there is none of that name."""

    def make(self, work: Work) -> None:
        """Make and keep every chunk of the work. Raises: BulkError; what was kept until then stays."""


def of_chunk(request: ResolvedRequest, chunk: Chunk) -> ResolvedRequest:
    """The request that makes a chunk."""
    own: dict[str, Any] = {"class_label": chunk.class_label, "seed": chunk.seed}
    if request.kind == "upsample":
        own["images"] = [name_of(index) for index in chunk.indices]
    else:
        own["n"] = len(chunk.indices)
    return request.model_copy(update=own)


def body_of(request: ResolvedRequest) -> dict[str, Any]:
    """The request as a service takes it: the fields of its kind."""
    said = request.model_dump(mode="json", include=set(FIELDS[request.kind] - OF_NO_PIXEL | {"kind", "model"}))
    return {name: value for name, value in said.items() if value is not None} | {"priority": "low"}


def common(request: ResolvedRequest) -> dict[str, Any]:
    """What all jobs of a run have in common and what determines their pixels, as JSON."""
    return request.model_dump(mode="json", exclude=EACH_ITS_OWN | OF_OTHER_KINDS | OF_NO_PIXEL)
