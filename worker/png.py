"""PNG files of finished images, with text chunks that describe how to make them again."""

import io
import json
from collections.abc import Mapping

from PIL import Image, features
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from engine.pipeline import Pipeline
from jobs.contract.request import ResolvedRequest
from jobs.contract.request_from_image import CHUNK
from jobs.contract.samplers import SAMPLER_NOTES

TEXT_VERSION = 3  # of the text chunks; raise it when they change, because equal requests then give other bytes


def encode(pixels: Tensor, text: Mapping[str, str] | None = None) -> bytes:
    """A PNG of pixels [3, H, W], uint8, with text chunks."""
    info = PngInfo()
    for keyword, value in (text or {}).items():
        info.add_text(keyword, value)
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy()).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def encoder_versions() -> dict[str, str | None]:
    """The versions that a PNG's bytes depend on besides its pixels and text."""
    return {"pillow": features.version("pil"), "zlib": features.version("zlib"), "text": str(TEXT_VERSION)}


def describe(request: ResolvedRequest, index: int, pipeline: Pipeline, numerics: str) -> dict[str, str]:
    """The text chunks of an image: only what determines its pixels, so that equal requests give equal bytes."""
    return {
        "parameters": _parameters(request, index, pipeline),
        CHUNK: json.dumps(_determinants(request, index, pipeline, numerics), sort_keys=True, separators=(",", ":")),
    }


def _determinants(request: ResolvedRequest, index: int, pipeline: Pipeline, numerics: str) -> dict[str, object]:
    stack = pipeline.stack
    classifier = None if stack.classifier is None else stack.classifier.model_hash
    stages = [{"stage": "base", "model": stack.base.model_hash, "classifier": classifier}]
    if request.upsample and stack.upsampler is not None:
        stages.append({"stage": "upsample", "model": stack.upsampler.model_hash})
    source = request.source(index)
    return {
        "version": TEXT_VERSION,
        "kind": request.kind,
        "images": request.images if request.kind == "interpolate" else [source] if source else [],
        "seeds": request.seeds,
        "strength": request.strength,
        "frames": request.n if request.kind == "interpolate" else None,
        "model": request.model,
        "class_label": request.class_label,
        "class_weights": request.class_weights,
        "guidance_scale": request.guidance_scale,
        "guidance_schedule": request.guidance_schedule,
        "guidance_interval": request.guidance_interval,
        "steps": request.steps,
        "sampler": request.sampler,
        "eta": request.eta,
        "time_grid": request.time_grid,
        "thresholding": request.thresholding,
        "eps_scale": request.eps_scale,
        "seed": request.seed,
        "image_index": index,
        "upsample": request.upsample.model_dump() if request.upsample else False,
        "stages": stages,
        "numerics": numerics,
    }


def _parameters(request: ResolvedRequest, index: int, pipeline: Pipeline) -> str:
    """The one-paragraph form that image viewers and other generators read: a prompt line, then fields."""
    names = pipeline.stack.class_names
    prompt = "no class" if request.class_label is None else names[request.class_label]
    if request.class_weights:
        prompt = ", ".join(f"({names[int(label)]}:{weight:.3g})" for label, weight in request.class_weights.items())
    fields: dict[str, object] = {
        "Steps": request.steps,
        "Sampler": _sampler_name(request),
        "CFG scale": f"{request.guidance_scale:g}",  # the name that readers of this text use for any guidance scale
        "Seed": request.seed,
        "Image index": index,
        "Size": "x".join([str(_final_size(request, pipeline))] * 2),
        "Model": request.model,
        "Model hash": pipeline.stack.base.model_hash[:10],
    }
    if request.time_grid != "official":
        fields["Schedule type"] = request.time_grid  # another name that these readers use
    if request.thresholding != "clip":
        fields["Thresholding"] = request.thresholding
    if request.strength is not None:
        fields["Denoising strength"] = f"{request.strength:g}"
    return f"{prompt}\n" + ", ".join(f"{name}: {value}" for name, value in fields.items())


def _sampler_name(request: ResolvedRequest) -> str:
    titles = {each.name: each.title for each in SAMPLER_NOTES}
    return f"{titles.get(request.sampler, request.sampler)}{f' eta {request.eta:g}' if request.eta else ''}"


def _final_size(request: ResolvedRequest, pipeline: Pipeline) -> int:
    upsampler, base = pipeline.stack.upsampler, pipeline.stack.base
    return (upsampler if request.upsample and upsampler is not None else base).network.config.image_size
