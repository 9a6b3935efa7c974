"""A check that needs no data: do the flags that no key and no shape tells suit these weights?

A checkpoint brings no flags, and a wrong one makes noise without any error. So known noise is laid over smooth random
images, and the network is asked for it under the flags given and under each other reading of the same weights. Inputs
are the same, so that the errors compare pair by pair: where another reading finds the noise clearly better, the flags
are wrong. What this finds and what it misses is measured in docs/self-check.md.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.process import MeanType, Process
from engine.process import process_of
from models.networks.attention import AttentionBlock
from models.networks.classifier import NoisyClassifier
from models.networks.unet import SuperResUNet, UNet
from models.stack import Stack

NOISE_FRACTIONS = (0.06, 0.15, 0.3, 0.55)  # of the schedule: where attention and the timestep matter
CLEARLY_BETTER = 0.93  # ratio of squared errors: another reading's to the given one's
FAINT_AGREEMENT = 0.99  # correlation with pure noise; networks that were trained for an hour reach 0.999
CALM = 0.6  # entropy of a classifier's answer to pure noise, of log(classes)


@dataclass(frozen=True)
class Probe:
    """Noisy inputs whose noise is known: x and noise [N, 3, H, W], alpha_bar and timesteps [N]."""

    x: Tensor
    noise: Tensor
    alpha_bar: Tensor
    timesteps: Tensor
    low_res: Tensor


def check_stack(stack: Stack) -> list[str]:
    """Doubts about the flags of a stack's networks, one line each; none where all is well."""
    lines = []
    for role, held in (("base", stack.base), ("upsampler", stack.upsampler)):
        if held is not None:
            lines += [f"{role}: {line}" for line in check_network(held.network, process_of(held))]
    if stack.classifier is not None:
        lines += [f"classifier: {line}" for line in check_classifier(stack.classifier.network, process_of(stack.base))]
    return [f"{stack.name}, {line}" for line in lines]


@torch.no_grad()
def check_network(network: UNet, process: Process, seed: int = 0) -> list[str]:
    """Doubts about a diffusion network's flags; none where all is well. Some twenty rows of forward passes."""
    probe, pure = make_probe(network, process, seed), pure_noise(network, process, seed)
    findings = []
    eps = _eps(network, pure, process)
    agreement = float(F.cosine_similarity(eps.flatten(), pure.noise.flatten(), dim=0))
    if not agreement >= FAINT_AGREEMENT:  # also NaN
        findings.append(f"at pure noise its eps agrees with the noise by {agreement:.3f}; 0.999 is usual")
    given, given_pure = _error(_eps(network, probe, process), probe), _error(eps, pure)
    groups = [{name: error / given for name, error in _other_readings(network, probe, process)}]
    if process.mean_type is MeanType.EPSILON:  # what predicts x0 says next to nothing of pure noise
        groups.append({name: error / given_pure for name, error in _other_timesteps(network, pure, process)})
    # the first group that explains it: a network that predicts x0 finds more or less noise at other timesteps, too
    for ratios in groups:
        best = min(ratios, key=ratios.__getitem__)
        if ratios[best] < CLEARLY_BETTER:
            return [*findings, f"it finds noise better with {best}: {ratios[best]:.2f} of the squared error"]
    return findings


def check_classifier(classifier: NoisyClassifier, process: Process, seed: int = 0) -> list[str]:
    """Doubts about a classifier: it should not see a class in pure noise."""
    device, size = next(classifier.parameters()).device, classifier.config.image_size
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(device)
    t = torch.full((4,), float(process.network_timesteps[-1]), device=device)
    with torch.no_grad():
        rows = zip(x.split(1), t.split(1), strict=True)  # one at a time, as in _eps
        log_p = torch.cat([classifier(*row) for row in rows]).float().log_softmax(-1)
    calm = float(-(log_p.exp() * log_p).sum(-1).mean()) / math.log(classifier.config.out_channels)
    return [] if calm >= CALM else [f"it sees classes in pure noise: entropy {calm:.2f} of log(classes)"]


def make_probe(network: UNet, process: Process, seed: int) -> Probe:
    """A smooth random image under one noise, at each of NOISE_FRACTIONS."""
    generator, size, count = torch.Generator().manual_seed(seed), network.config.image_size, len(NOISE_FRACTIONS)
    coarse = torch.rand(1, 3, 4, 4, generator=generator) * 1.4 - 0.7
    image = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=True).expand(count, -1, -1, -1)
    noise = torch.randn(1, 3, size, size, generator=generator).expand(count, -1, -1, -1)
    schedule = process.schedule
    rows = torch.tensor([int(fraction * (schedule.num_timesteps - 1)) for fraction in NOISE_FRACTIONS])
    alpha_bar = schedule.alpha_bar[rows].float()
    weight = alpha_bar[:, None, None, None]
    x = weight.sqrt() * image + (1 - weight).sqrt() * noise
    timesteps = process.network_timesteps[rows].float()
    device = next(network.parameters()).device
    return Probe(*(each.to(device) for each in (x, noise, alpha_bar, timesteps, F.avg_pool2d(image, 2))))


def pure_noise(network: UNet, process: Process, seed: int) -> Probe:
    """Noise and nothing else, at the last step."""
    size, device = network.config.image_size, next(network.parameters()).device
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(device)
    timesteps = process.network_timesteps[-1:].float().to(device).expand(2)
    alpha_bar = process.schedule.alpha_bar[-1:].float().to(device).expand(2)
    return Probe(noise, noise, alpha_bar, timesteps, torch.zeros_like(noise))


def _eps(network: UNet, probe: Probe, process: Process) -> Tensor:
    return _as_eps(_predict(network, probe), probe, process.mean_type)


def _as_eps(output: Tensor, probe: Probe, mean_type: MeanType) -> Tensor:
    if mean_type is MeanType.EPSILON:
        return output
    weight = probe.alpha_bar[:, None, None, None]
    return (probe.x - weight.sqrt() * output) / (1 - weight).sqrt()


def _predict(network: UNet, probe: Probe) -> Tensor:
    """Row by row: the device may have room for no more than one at a time."""
    labels = None if network.config.num_classes is None else torch.zeros(1, dtype=torch.long, device=probe.x.device)
    rows = zip(probe.x.split(1), probe.timesteps.split(1), probe.low_res.split(1), strict=True)
    outputs = [
        network(x, t, labels, low_res=low_res) if isinstance(network, SuperResUNet) else network(x, t, labels)
        for x, t, low_res in rows
    ]
    return torch.cat(outputs)[:, :3].float()


def _error(eps: Tensor, probe: Probe) -> float:
    """Geometric mean over the rows of the squared error: every noise level counts alike."""
    return float((eps - probe.noise).square().mean((1, 2, 3)).clamp(min=1e-12).log().mean().exp())


def _other_readings(network: UNet, probe: Probe, process: Process) -> Iterator[tuple[str, float]]:
    """The error under each other reading of the weights, by a name for it."""
    for told, new_order, channels in _other_heads(network):
        with _heads(network, new_order, channels):
            yield told, _error(_eps(network, probe, process), probe)
    given_eps = process.mean_type is MeanType.EPSILON
    other = MeanType.START_X if given_eps else MeanType.EPSILON
    told = "predict_xstart" if given_eps else "eps in place of predict_xstart"
    yield told, _error(_as_eps(_predict(network, probe), probe, other), probe)


def _other_timesteps(network: UNet, pure: Probe, process: Process) -> Iterator[tuple[str, float]]:
    # At pure noise alone: told another time, a network expects another share of image, and finds less of the noise.
    for factor in (4.0, 0.25):
        eps = _eps(network, dataclasses.replace(pure, timesteps=pure.timesteps * factor), process)
        yield f"timesteps times {factor:g} (rescale_timesteps or diffusion_steps)", _error(eps, pure)


def _other_heads(network: UNet) -> Iterator[tuple[str, bool, int | None]]:
    """(name, new order, channels a head; None for the network's own) of the other readings of attention."""
    blocks = [each for each in network.modules() if isinstance(each, AttentionBlock)]
    order, widths = blocks[0].new_order, [block.norm.num_channels for block in blocks]
    given = {width // block.num_heads for width, block in zip(widths, blocks, strict=True)}
    yield f"{'legacy' if order else 'new'} attention order", not order, None
    for channels in (32, 64, math.gcd(*widths)):
        if given != {channels} and all(width % channels == 0 for width in widths):
            yield f"{channels} channels a head", order, channels


@contextlib.contextmanager
def _heads(network: UNet, new_order: bool, channels: int | None) -> Iterator[None]:
    blocks = [each for each in network.modules() if isinstance(each, AttentionBlock)]
    before = [(block.num_heads, block.new_order) for block in blocks]
    try:
        for block in blocks:
            block.new_order = new_order
            block.num_heads = block.num_heads if channels is None else block.norm.num_channels // channels
        yield
    finally:
        for block, (num_heads, order) in zip(blocks, before, strict=True):
            block.num_heads, block.new_order = num_heads, order
