"""Sources of a run's images, and the requests for them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from bulk.base_samples import BaseSamples, name_of
from bulk.chunks import Chunk
from bulk.outputs import Output
from jobs.contract.kinds import FIELDS
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import ResolvedRequest

EACH_ITS_OWN = {"class_label", "n", "seed"}  # fields that differ between the jobs of a run
OF_OTHER_KINDS = {"kind", "images", "seeds", "strength", "class_weights"}  # the kind, and fields of only some kinds
OF_NO_PIXEL = {"previews", "priority", "expires_in", "user", "metadata", "webhook_url"}  # do not change any pixel


@dataclass(frozen=True)
class ChunkWork:
    """The missing chunks of a run, and the functions that process them.

    request: the fields that they share. base: the base samples that they start from, None for noise. on_numerics gets
    the fingerprint of images, on_images the number of stored images, on_note the reason of a wait.
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
    """Makes images: a machine's devices, or a service."""

    def describe(self, model: str) -> PipelineInfo:
        """The announcement of a pipeline. Raises: BulkError if there is none with this name."""

    def make(self, work: ChunkWork) -> None:
        """Make and store every chunk of the work. Raises: BulkError; stored chunks stay."""


def of_chunk(request: ResolvedRequest, chunk: Chunk) -> ResolvedRequest:
    """The request that makes a chunk."""
    own: dict[str, Any] = {"class_label": chunk.class_label, "seed": chunk.seed}
    if request.kind == "upsample":
        own["images"] = [name_of(index) for index in chunk.indices]
    else:
        own["n"] = len(chunk.indices)
    return request.model_copy(update=own)


def body_of(request: ResolvedRequest) -> dict[str, Any]:
    """The body of the request for a service: the fields of its kind."""
    fields = request.model_dump(mode="json", include=set(FIELDS[request.kind] - OF_NO_PIXEL | {"kind", "model"}))
    return {name: value for name, value in fields.items() if value is not None} | {"priority": "low"}


def common(request: ResolvedRequest) -> dict[str, Any]:
    """The fields that all jobs of a run share and that determine pixels, as JSON."""
    return request.model_dump(mode="json", exclude=EACH_ITS_OWN | OF_OTHER_KINDS | OF_NO_PIXEL)
