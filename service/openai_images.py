"""Translates OpenAI's images API: its requests to job requests, and our images to its answers."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from jobs.contract.errors import FieldError, InvalidRequestError
from jobs.contract.job import ImageView
from jobs.contract.json_bodies import field_errors, pointer_to, refuse_repeated_names
from jobs.contract.kinds import COMMON, FIELDS, Kind
from jobs.contract.pipelines import PipelineInfo
from jobs.contract.request import MAX_IMAGES, JobRequest, Name, ResolvedRequest
from jobs.contract.work import evaluations_of

MAX_PARTIAL_IMAGES = 3  # OpenAI's limit
PROMPT = "a class of the model, by name or index, as /v1/models/{model} lists them; empty: no class, where offered"
SIZES = "auto, the model's image_size, or the size of its base stage, which gives images without the upsampler"
OURS_ALONE = frozenset({"kind", "images", "seeds", "class_label", "previews", "webhook_url"})  # refused in these calls
Prompt = Annotated[str, StringConstraints(max_length=256)]
Partials = Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES)]


class ImageFields(BaseModel):
    """OpenAI's fields of all three calls. A field that is neither among them nor a job's is refused."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)
    IGNORED: ClassVar[frozenset[str]] = frozenset({
        "background", "complexity", "frame_count", "frame_duration_ms", "input_fidelity", "moderation",
        "output_compression", "quality", "safety_identifier", "style", "svg",
    })  # fmt: skip

    prompt: Prompt | None = Field(default=None, description=PROMPT)
    model: Name | None = Field(default=None, description="a pipeline of /v1/models; null: the service's default")
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: Annotated[str, StringConstraints(pattern=r"^(auto|[0-9]{1,4}x[0-9]{1,4})$")] | None = Field(
        default=None, description=SIZES
    )
    response_format: Literal["b64_json", "url"] | None = Field(default=None, description="null: b64_json")
    output_format: Literal["png"] | None = None
    user: Annotated[str, StringConstraints(max_length=128)] | None = None


class StreamedFields(ImageFields):
    prompt: Prompt = Field(description=PROMPT)
    stream: bool | None = Field(default=None, description="server-sent events; images are base64 then")
    partial_images: Partials | None = Field(default=None, description="with stream: limit of previews per image")


class ImageCall(NamedTuple):
    """A parsed call of OpenAI's API."""

    fields: ImageFields
    request: JobRequest
    ignored: list[str]
    partial_images: int  # of each image, at most
    streams: bool


def json_fields(body: bytes) -> dict[str, Any]:
    """The members of a JSON object. Raises: InvalidRequestError."""
    refuse_repeated_names(body)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError([FieldError("", "the body is not JSON")]) from error
    if not isinstance(found, dict):
        raise InvalidRequestError([FieldError("", "the body must be a JSON object")])
    return found


def form_fields(form: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The values of a form's text fields: parsed as JSON if possible, except OpenAI's own text fields.

    Raises: InvalidRequestError for a name that is given twice, in the form or within a value.
    """
    texts = {"model", "size", "prompt", "response_format", "output_format", "user"}

    def value_of(name: str, text: str) -> Any:
        if name in texts:
            return text
        refuse_repeated_names(text)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    times = Counter(name for name, _ in form)
    if twice := [name for name in times if times[name] > 1]:
        raise InvalidRequestError([FieldError(pointer_to([name]), "is given twice") for name in twice])
    return {name: value_of(name, text) for name, text in form}


def understand(
    kind: Kind,
    model: type[ImageFields],
    given: Mapping[str, Any],
    images: list[str] | None,
    pipelines: Mapping[str, PipelineInfo],
    default_model: str,
) -> ImageCall:
    """Parse a call into a job request. Raises: InvalidRequestError, one entry per wrong field, by OpenAI's names."""
    taken = {name: value for name, value in given.items() if name not in ImageFields.IGNORED}
    try:
        fields = model.model_validate(taken)
        extras = dict(fields.model_extra or {})
        if unknown := sorted(extras.keys() - extras_of(kind)):
            raise InvalidRequestError([FieldError(f"/{name}", "unknown field") for name in unknown])
        pipeline = pipelines.get(fields.model or default_model)
        ours: dict[str, Any] = {"kind": kind, "model": fields.model, "user": fields.user, "images": images}
        ours = {name: value for name, value in ours.items() if value is not None} | extras
        if fields.n is not None:
            ours["n"] = fields.n
        if fields.size not in (None, "auto") and pipeline is not None:
            ours |= upsample_for(fields.size or "", extras, pipeline)
        if fields.prompt is not None:
            ours["class_label"] = class_of(fields.prompt)
        streams, partial_images = False, 0
        ignored = sorted(ImageFields.IGNORED & given.keys())
        if isinstance(fields, StreamedFields):
            streams, partial_images = bool(fields.stream), fields.partial_images or 0
            ignored += ["partial_images"] if partial_images and not streams else []
        if streams and partial_images:
            ours["previews"] = True
        if streams and fields.response_format == "url":
            raise InvalidRequestError([FieldError("/response_format", "a stream's images are b64_json")])
        return ImageCall(fields, JobRequest.model_validate(ours), ignored, partial_images, streams)
    except ValidationError as error:
        raise InvalidRequestError(field_errors(error)) from error


def extras_of(kind: Kind) -> frozenset[str]:
    """Fields of a job that a call of a kind accepts in addition to OpenAI's."""
    return (COMMON | FIELDS[kind]) - OURS_ALONE - ImageFields.model_fields.keys()


def class_of(prompt: str) -> int | str | None:
    """The class that a prompt names; None if it is empty."""
    text = prompt.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text or None


def upsample_for(size: str, extras: Mapping[str, Any], pipeline: PipelineInfo) -> dict[str, Any]:
    """The fields that give a pipeline's images this size. Raises: InvalidRequestError for a size that it lacks."""
    stages = {f"{each.image_size}x{each.image_size}": each.name for each in pipeline.stages}
    if size not in stages:
        raise InvalidRequestError([FieldError("/size", f"{pipeline.id!r} makes {' or '.join(stages)}, not {size}")])
    upsample, given = stages[size] == "upsample", extras.get("upsample")
    if given is not None and (given is not False) != upsample:
        raise InvalidRequestError([FieldError("/size", "contradicts upsample; leave one of the two out")])
    return {"upsample": upsample} if given is None and len(stages) > 1 else {}


def body_schema(kind: Kind, model: type[ImageFields], *files: str) -> dict[str, Any]:
    """The schema of a call's body: OpenAI's fields, those of a job, and files of a form."""
    own = model.model_json_schema()
    ours = JobRequest.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
    extras = {name: ours[name] for name in sorted(extras_of(kind))}
    ignored = {name: {"description": "accepted, and named in X-ADM-Ignored-Fields"} for name in sorted(model.IGNORED)}
    pictures = {name: {"type": "string", "format": "binary"} for name in files}
    return {
        "type": "object",
        "properties": own["properties"] | ignored | extras | pictures,
        "required": [*own.get("required", []), *files],
        "additionalProperties": False,
    }


class TokenDetails(BaseModel):
    image_tokens: int = 0
    text_tokens: int = 0


class TokenUsage(BaseModel):
    """OpenAI counts tokens; here an output token is one denoising step of one image, and input costs nothing."""

    input_tokens: int = 0
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, steps: int) -> "TokenUsage":
        return cls(output_tokens=steps, total_tokens=steps)


class OpenAIImage(BaseModel):
    b64_json: str | None = Field(default=None, description="the PNG")
    url: str | None = Field(default=None, description="absolute")


class ImagesResponse(BaseModel):
    created: int = Field(description="Unix seconds")
    data: list[OpenAIImage]
    output_format: Literal["png"]
    size: str
    usage: TokenUsage


class ImageEvent(BaseModel):
    """An event of a stream: a preview of an image, or the image."""

    type: str
    b64_json: str
    created_at: int
    size: str
    index: int = Field(description="of the image among the n")
    output_format: Literal["png"] = "png"
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    partial_image_index: int | None = None
    usage: TokenUsage | None = None


class PartialImages:
    """Chooses a few previews of each image, spread evenly over its steps."""

    def __init__(self, request: ResolvedRequest, most: int) -> None:
        self._stages, self._most = evaluations_of(request), most
        self._sent: dict[int, int] = {}

    def take(self, preview: Mapping[str, Any]) -> int | None:
        """The number of a preview, from 0, among those sent of its image; None if it is not to be sent."""
        before = list(self._stages)[: list(self._stages).index(preview["stage"])]
        done = sum(self._stages[each] for each in before) + preview["step"]
        due = done * (self._most + 1) // sum(self._stages.values())
        number = self._sent.get(preview["index"], 0)
        if number >= min(due, self._most):
            return None
        self._sent[preview["index"]] = number + 1
        return number


def size_of(images: list[ImageView]) -> str:
    return f"{images[0].width}x{images[0].height}" if images else "auto"
