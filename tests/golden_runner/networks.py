"""Cases of components, UNets and classifiers. The official constructor names become ours here, and only here."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.guidance import classifier_log_probabilities, guidance_gradient, one_hot
from models.networks.attention import AttentionBlock, AttentionPool, attend
from models.networks.blocks import Downsample, ResBlock, Upsample, timestep_embedding
from models.networks.classifier import NoisyClassifier
from models.networks.config import ClassifierConfig, UNetConfig
from models.networks.dinov2 import DinoV2, TransformerSize, normalised
from models.networks.norm import GroupNorm32
from models.networks.unet import build_unet
from tests.golden_runner.case import Case, CaseError, Fields

Call = Callable[..., Tensor]


def unet(case: Case) -> dict[str, Tensor]:
    super_res = case.body.need("model") == "SuperResModel"
    config = case.config
    shared = encoder_arguments(config)
    if super_res:
        shared["in_channels"] *= 2  # the low-resolution image is joined to the input
    model = build_unet(
        UNetConfig(
            **shared,
            num_classes=config.take("num_classes"),
            num_heads_upsample=config.take("num_heads_upsample", -1),
            super_res=super_res,
        )
    )
    load(model, case)
    x = case.inputs["x"].requires_grad_("grad_params" in case.body)
    extra = {"low_res": case.inputs["low_res"]} if super_res else {}
    out = model(x, case.inputs["timesteps"], case.inputs.get("y"), **extra)
    got = {"out": out}
    if names := case.body.take("grad_params", []):
        parameters = dict(model.named_parameters())
        grads = torch.autograd.grad((out * case.inputs["w"]).sum(), [x, *(parameters[name] for name in names)])
        got["grad_x"] = grads[0]
        got |= {f"grad/{name}": grad for name, grad in zip(names, grads[1:], strict=True)}
    return got


def classifier(case: Case) -> dict[str, Tensor]:
    if case.body.need("model") != "EncoderUNetModel":
        raise CaseError("a classifier case must be of EncoderUNetModel")
    arguments = encoder_arguments(case.config)
    case.config.take("num_heads_upsample")  # an encoder has no decoder attention
    model = NoisyClassifier(ClassifierConfig(**arguments, pool=case.config.take("pool", "adaptive")))
    load(model, case)
    x, timesteps = case.inputs["x"], case.inputs["timesteps"]
    with torch.no_grad():
        logits = model(x, timesteps)
    targets = one_hot(case.inputs["y"], logits.shape[1])
    return {
        "out": logits,
        "guidance_grad": guidance_gradient(classifier_log_probabilities(model), x, timesteps, targets, 1.0),
    }


def encoder_arguments(config: Fields) -> dict[str, Any]:
    """The arguments of both networks from the official ones; those that do not change values are ignored."""
    for ignored in ("use_checkpoint", "use_fp16"):
        config.take(ignored)
    if config.take("dims", 2) != 2:
        raise CaseError("only two-dimensional networks are known")
    defaults = {
        "in_channels": 3,
        "dropout": 0.0,
        "conv_resample": True,
        "num_heads": 1,
        "num_head_channels": -1,
        "use_scale_shift_norm": False,
        "resblock_updown": False,
        "use_new_attention_order": False,
    }
    required = ("image_size", "model_channels", "out_channels", "num_res_blocks")
    arguments = {name: config.need(name) for name in required}
    arguments |= {name: config.take(name, default) for name, default in defaults.items()}
    arguments |= {name: tuple(config.need(name)) for name in ("attention_resolutions", "channel_mult")}
    return arguments


def component(case: Case) -> dict[str, Tensor]:
    name = case.body.need("model")
    if name not in COMPONENTS:
        raise CaseError(f"unknown component {name!r}")
    call = COMPONENTS[name](case.config)
    if isinstance(call, nn.Module):
        load(call, case)
    arguments = [case.inputs[key] for key in case.body.take("arg_order", list(case.inputs))]
    with torch.no_grad():
        return {"out": call(*arguments)}


def load(model: nn.Module, case: Case) -> None:
    model.load_state_dict(case.params)
    model.eval()


def _res_block(config: Fields) -> Call:
    config.take("use_checkpoint"), config.take("dims")
    names = ("use_conv", "use_scale_shift_norm", "up", "down")
    switches = {name: config.take(name, False) for name in names}
    return ResBlock(
        config.need("channels"),
        config.need("emb_channels"),
        config.take("dropout", 0.0),
        out_channels=config.take("out_channels"),
        **switches,
    )


def _attention_block(config: Fields) -> Call:
    config.take("use_checkpoint")
    return AttentionBlock(
        config.need("channels"),
        config.take("num_heads", 1),
        config.take("num_head_channels", -1),
        new_order=config.take("use_new_attention_order", False),
    )


def _attention_pool(config: Fields) -> Call:
    return AttentionPool(
        config.need("spacial_dim"),
        config.need("embed_dim"),
        config.need("num_heads_channels"),
        config.take("output_dim"),
    )


def _resampler(kind: type[Downsample] | type[Upsample]) -> Callable[[Fields], Call]:
    def build(config: Fields) -> Call:
        config.take("dims")
        return kind(config.need("channels"), use_conv=config.need("use_conv"), out_channels=config.take("out_channels"))

    return build


def _attend(*, new_order: bool) -> Callable[[Fields], Call]:
    def build(config: Fields) -> Call:
        heads = config.need("n_heads")
        return lambda qkv: attend(qkv, heads, new_order=new_order)

    return build


def _embedding(config: Fields) -> Call:
    dim, max_period = config.need("dim"), config.take("max_period", 10_000)
    return lambda timesteps: timestep_embedding(timesteps, dim, max_period)


class _DinoV2OfPixels(DinoV2):
    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(normalised(pixels))


def _dinov2(config: Fields) -> Call:
    gated = {"mlp": False, "swiglufused": True}[config.need("ffn_layer")]
    size = TransformerSize(config.need("embed_dim"), config.need("depth"), config.need("num_heads"), gated=gated)
    return _DinoV2OfPixels(size)


COMPONENTS: dict[str, Callable[[Fields], Call]] = {
    "ResBlock": _res_block,
    "AttentionBlock": _attention_block,
    "AttentionPool2d": _attention_pool,
    "QKVAttention": _attend(new_order=True),
    "QKVAttentionLegacy": _attend(new_order=False),
    "Downsample": _resampler(Downsample),
    "Upsample": _resampler(Upsample),
    "GroupNorm32": lambda config: GroupNorm32(config.need("channels")),
    "GroupNorm32+SiLU": lambda config: nn.Sequential(GroupNorm32(config.need("channels")), nn.SiLU()),
    "timestep_embedding": _embedding,
    "DinoVisionTransformer": _dinov2,
}
