"""Infers an ADM network from its keys and shapes, and lists the flags that they leave open; imports no torch.

A checkpoint contains no flags, and wrong flags make noise. Most of them follow from the state dict; the rest is listed.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from models.checkpoints.flags import CHANNEL_MULT
from models.checkpoints.presets import PRESETS, Preset
from models.networks.config import ClassifierConfig, EncoderConfig, PoolName, UNetConfig

Shapes = Mapping[str, tuple[int, ...]]

UPSAMPLER_CHANNELS = 6  # of the input: RGB, joined by the low-resolution image
RGB_CHANNELS = 3  # of the output, if the variance is not learned
SMALLEST_ATTENTION = 8  # the smallest feature map of the official default "32,16,8", for a guess at the image size
USUAL_HEAD_CHANNELS = 64
USUAL_HEADS = 4
FOREIGN_KEYS = (
    (r"transformer_blocks\.", "a UNet with cross-attention, as latent diffusion has it, conditioned on a text"),
    (r"(down|up)_blocks\.|conv_in\.", "a network in the layout of diffusers, which has keys of its own"),
    (r"(model\.)?(enc|dec)\.\d+x\d+_", "a network of EDM, which has keys and a parametrisation of its own"),
    (r"(encoder|decoder)\.(down|up|mid)", "an autoencoder of latent diffusion"),
    (r"(blocks\.\d+\.attn|x_embedder|patch_embed)\.", "a transformer (ViT, DiT), and no UNet"),
    (r"(layer\d|Mixed_\d\w|features)\.", "a classifier of clean images, and no noisy classifier of ADM"),
)
CONV_DIMS = 4  # of a 2-D convolution's weight


class NotAdmError(ValueError):
    """The keys are not those of an ADM network; the message is one line with the missing part."""


@dataclass(frozen=True)
class Open:
    """An official flag that keys and shapes do not determine, and the effect of a wrong value."""

    flag: str
    effect: str


@dataclass(frozen=True)
class Inspection:
    """The inferred network. Open fields of config have assumed values; presets: those with the same table of keys."""

    config: UNetConfig | ClassifierConfig
    presets: tuple[str, ...]
    open: tuple[Open, ...]
    depths: tuple[int, ...]  # possible residual blocks per level; several for some classifiers

    @property
    def preset(self) -> Preset | None:
        """The first official checkpoint with these keys."""
        return PRESETS[self.presets[0]] if self.presets else None


@dataclass(frozen=True)
class _Block:
    """An input block: its widths, whether it has attention, and its kind, as far as its keys show it."""

    width: int
    enters: int  # input width
    attends: bool
    kind: str  # "res", "conv", "pool"


def foreign(shapes: Shapes) -> str | None:
    """A description of a state dict that is not ADM's, if its keys show one; else None."""
    if any(key.endswith(".qkv.weight") and len(shape) == CONV_DIMS for key, shape in shapes.items()):
        return (
            "a consistency model (openai/consistency_models): its qkv weights have 4 dimensions, and it predicts no eps"
        )
    return next(
        (what for pattern, what in FOREIGN_KEYS if any(re.search(rf"(?:^|\.)(?:{pattern})", key) for key in shapes)),
        None,
    )


def inspect_shapes(shapes: Shapes, num_res_blocks: int | None = None) -> Inspection:
    """Infer a network from its state dict's shapes, and from its depth if that is known. Raises: NotAdmError."""
    if other := foreign(shapes):
        raise NotAdmError(f"no ADM network but {other}")
    blocks = list(_input_blocks(shapes))
    is_unet = any(key.startswith("output_blocks.") for key in shapes)
    depths = _depths(shapes, blocks) if is_unet else _encoder_depths(blocks)
    if not depths:
        raise NotAdmError("the input blocks follow no ADM pattern of levels and residual blocks")
    levels, num_res_blocks = next((each for each in depths if each[1] == num_res_blocks), depths[0])
    config: UNetConfig | ClassifierConfig = _unet(shapes) if is_unet else _classifier(shapes, levels)
    config = replace(config, **_encoder_fields(shapes, blocks, levels, num_res_blocks))
    config = replace(config, **_assumed_heads(config))
    config = replace(config, image_size=config.image_size or _assumed_size(config))
    presets = tuple(name for name, each in PRESETS.items() if _determined(each.config) == _determined(config))
    if presets:
        config = PRESETS[presets[0]].config
    return Inspection(config, presets, tuple(open_flags(config, len(depths) > 1)), tuple(count for _, count in depths))


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise NotAdmError(f"no ADM network: lacks {key}")
    return shapes[key]


def _indices(shapes: Shapes, pattern: str) -> set[int]:
    return {int(match[1]) for key in shapes if (match := re.match(pattern, key))}


def _input_blocks(shapes: Shapes) -> Iterator[_Block]:
    """All input blocks after the first convolution; a block without keys is a pooling."""
    enters = _shape(shapes, "input_blocks.0.0.weight")[0]
    for n in range(1, max(_indices(shapes, r"input_blocks\.(\d+)\."), default=0) + 1):
        stem = f"input_blocks.{n}"
        kind = "res" if f"{stem}.0.in_layers.2.weight" in shapes else "conv"
        weight = shapes.get(f"{stem}.0.in_layers.2.weight") or shapes.get(f"{stem}.0.op.weight")
        if weight is None:
            kind = "pool"
        width = enters if weight is None else weight[0]
        yield _Block(width, enters, f"{stem}.1.qkv.weight" in shapes, kind)
        enters = width


def _depths(shapes: Shapes, blocks: list[_Block]) -> list[tuple[int, int]]:
    """(levels, residual blocks per level) of a UNet: each level's decoder except the finest ends with an upsampler."""
    outputs = max(_indices(shapes, r"output_blocks\.(\d+)\.")) + 1
    upsamplers = _indices(shapes, r"output_blocks\.(\d+)\.[12]\.(?:in_layers\.2|conv)\.weight")
    levels = 1 + (len(upsamplers) or sum(block.kind == "pool" for block in blocks))
    num_res_blocks = outputs // levels - 1
    return [(levels, num_res_blocks)] if _fits(blocks, levels, num_res_blocks) else []


def _encoder_depths(blocks: list[_Block]) -> list[tuple[int, int]]:
    """All (levels, residual blocks per level) that the blocks of an encoder allow.

    A residual block that halves the map has the same keys as any other. But a level cannot have two widths, or
    attention in only some of its blocks. If several depths remain, those near the official depth of two come first.
    """
    total = len(blocks) + 1
    splits = [(total // (n + 1), n) for n in range(1, total) if total % (n + 1) == 0]
    return [each for each in sorted(splits, key=lambda each: abs(each[1] - 2)) if _fits(blocks, *each)]


def _fits(blocks: list[_Block], levels: int, num_res_blocks: int) -> bool:
    if num_res_blocks < 1 or len(blocks) + 1 != levels * (num_res_blocks + 1):
        return False
    for level in range(levels):
        start = level * (num_res_blocks + 1)
        body, rest = blocks[start : start + num_res_blocks], blocks[start + num_res_blocks :][:1]
        if any(block.kind != "res" for block in body):
            return False
        if len({block.width for block in body}) > 1 or len({block.attends for block in body}) > 1:
            return False
        if any(block.attends or block.width != block.enters for block in rest):
            return False
    downs = {block.kind for block in blocks[num_res_blocks :: num_res_blocks + 1]}
    return len(downs) <= 1


def _encoder_fields(shapes: Shapes, blocks: list[_Block], levels: int, num_res_blocks: int) -> dict[str, Any]:
    firsts = blocks[:: num_res_blocks + 1]
    model_channels = _shape(shapes, "time_embed.0.weight")[1]
    in_channels = _shape(shapes, "input_blocks.0.0.weight")[1]
    kind = blocks[num_res_blocks].kind if levels > 1 else "res"
    emb_width = _shape(shapes, "middle_block.0.emb_layers.1.weight")[0]
    return {
        "model_channels": model_channels,
        "in_channels": in_channels,
        "num_res_blocks": num_res_blocks,
        "channel_mult": tuple(_multiplier(block.width, model_channels) for block in firsts),
        "attention_resolutions": tuple(2**level for level, block in enumerate(firsts) if block.attends),
        "use_scale_shift_norm": emb_width == 2 * blocks[-1].width,
        "resblock_updown": kind == "res",
        "conv_resample": kind != "pool",
    }


def _multiplier(width: int, model_channels: int) -> float:
    if width % model_channels == 0:
        return width // model_channels
    ratio = width / model_channels
    return ratio if int(ratio * model_channels) == width else math.nextafter(ratio, math.inf)


def _unet(shapes: Shapes) -> UNetConfig:
    labels = shapes.get("label_emb.weight")
    return UNetConfig(
        **_UNKNOWN_YET,
        out_channels=_shape(shapes, "out.2.weight")[0],
        num_classes=None if labels is None else labels[0],
        super_res=_shape(shapes, "input_blocks.0.0.weight")[1] == UPSAMPLER_CHANNELS,
    )


def _classifier(shapes: Shapes, levels: int) -> ClassifierConfig:
    pool: PoolName
    size = 0
    if "out.2.positional_embedding" in shapes:
        pool, logits = "attention", _shape(shapes, "out.2.c_proj.weight")
        size = math.isqrt(shapes["out.2.positional_embedding"][1] - 1) * 2 ** (levels - 1)
    elif len(_shape(shapes, "out.0.weight")) == 1:
        pool, logits = "adaptive", _shape(shapes, "out.3.weight")
    elif "out.1.weight" in shapes:
        pool, logits = "spatial_v2", _shape(shapes, "out.3.weight")
    else:
        pool, logits = "spatial", _shape(shapes, "out.2.weight")
    return ClassifierConfig(**_UNKNOWN_YET | {"image_size": size}, out_channels=logits[0], pool=pool)


_UNKNOWN_YET: dict[str, Any] = {
    "image_size": 0,
    "model_channels": 0,
    "num_res_blocks": 0,
    "attention_resolutions": (),
    "channel_mult": (),
}


def _assumed_heads(config: EncoderConfig) -> dict[str, Any]:
    widths = [config.width(level) for level in range(len(config.channel_mult))]
    attending = [width for level, width in enumerate(widths) if 2**level in config.attention_resolutions]
    if all(width % USUAL_HEAD_CHANNELS == 0 for width in [*attending, widths[-1]]):
        return {"num_head_channels": USUAL_HEAD_CHANNELS, "num_heads": USUAL_HEADS}
    if isinstance(config, ClassifierConfig) and config.pool == "attention":  # its heads follow from channels
        return {"num_head_channels": math.gcd(*attending, widths[-1])}
    return {"num_heads": USUAL_HEADS if all(width % USUAL_HEADS == 0 for width in attending) else 1}


def _assumed_size(config: EncoderConfig) -> int:
    official = (size for size, mult in CHANNEL_MULT.items() if mult == config.channel_mult)
    return next(official, SMALLEST_ATTENTION * max(config.attention_resolutions, default=2 ** len(config.channel_mult)))


def _determined(config: EncoderConfig) -> EncoderConfig:
    """The configuration without the fields that keys and shapes do not determine."""
    pooled = isinstance(config, ClassifierConfig) and config.pool == "attention"
    decoder: dict[str, Any] = {"num_heads_upsample": -1} if isinstance(config, UNetConfig) else {}
    reached = tuple(f for f in config.attention_resolutions if f < 2 ** len(config.channel_mult))
    return replace(
        config,
        image_size=config.image_size if pooled else 0,
        attention_resolutions=reached,
        dropout=0.0,
        num_heads=1,
        num_head_channels=-1,
        use_new_attention_order=False,
        rescale_residual=False,
        **decoder,
    )


def open_flags(config: UNetConfig | ClassifierConfig, ambiguous: bool) -> Iterator[Open]:
    """Yield the flags that a network's keys leave open; some are open only for certain heads.

    ambiguous: whether the keys leave the network's depth open too.
    """
    yield Open("use_new_attention_order", "noise: the shapes are the same in both orders of qkv")
    yield Open("num_heads / num_head_channels", "images that fall apart, or noise")
    if isinstance(config, UNetConfig) and config.num_head_channels == -1:
        yield Open("num_heads_upsample", "noise, if the decoder's heads differ from the encoder's")
    if not (isinstance(config, ClassifierConfig) and config.pool == "attention"):
        yield Open("image_size", "repeated or cut objects: the network runs at any size")
    if ambiguous:
        yield Open("num_res_blocks", "another network of the same keys, and noise")
    if isinstance(config, UNetConfig):
        yield Open("noise_schedule", "washed-out, over-sharp or noisy images")
        yield Open("diffusion_steps", "washed-out, over-sharp or noisy images")
        yield Open("rescale_timesteps", "none at 1000 diffusion_steps; noise at any other count")
        yield Open("predict_xstart", "noise")
        if config.out_channels == RGB_CHANNELS:
            yield Open("sigma_small", "over-sharp or too smooth images with DDPM, most of all with few steps")
