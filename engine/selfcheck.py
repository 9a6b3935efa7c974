"""Checks, without data, the flags of a network that the keys and shapes of its weights do not show.

A checkpoint contains no flags, and a wrong flag makes noise without any error. So known noise is added to smooth random
images, and the network predicts it under the given flags and under each other reading of the same weights. All readings
get the same inputs, so the errors are compared in pairs: if another reading predicts the noise clearly better, the
flags are wrong. docs/self-check.md has measurements of what this finds and what it misses.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.grey import channel_mean, grey_eps
from diffusion.process import DiffusionProcess, MeanType
from engine.diffusion_process import process_of
from models.networks.attention import AttentionBlock
from models.networks.classifier import NoisyClassifier
from models.networks.unet import SuperResUNet, UNet
from models.stack import Stack
from vocabulary.counts import counted

# noise levels, as places in the schedule, at which a wrong attention order or timestep changes the result
NOISE_FRACTIONS = (0.06, 0.15, 0.3, 0.55)
CLEARLY_BETTER = 0.93  # ratio of squared errors: another reading's to the given one's
LOWEST_AGREEMENT = 0.99  # lowest cosine with pure noise; networks trained for an hour reach 0.999
NOISY_OUTPUT = 0.3  # cosine of an output and pure noise, above which the output may be eps; for x_0 it is near 0
LOWEST_ENTROPY = 0.6  # lowest entropy of a classifier's answer to pure noise, in units of log(classes)


@dataclass(frozen=True)
class Probe:
    """Noisy inputs whose noise is known: x and noise [N, 3, H, W], alpha_bar and timesteps [N]."""

    x: Tensor
    noise: Tensor
    alpha_bar: Tensor
    timesteps: Tensor
    low_res: Tensor


def check_stack(stack: Stack) -> list[str]:
    """Doubts about the flags of a stack's networks, one line each; empty if there are none."""
    lines = []
    for role, loaded in (("base", stack.base), ("upsampler", stack.upsampler)):
        if loaded is not None:
            lines += [f"{role}: {line}" for line in check_network(loaded.network, process_of(loaded))]
    if stack.classifier is not None:
        lines += [f"classifier: {line}" for line in check_classifier(stack.classifier.network, process_of(stack.base))]
    return [f"{stack.name}, {line}" for line in lines]


@torch.no_grad()
def check_network(network: UNet, process: DiffusionProcess, seed: int = 0) -> list[str]:
    """Doubts about a diffusion network's flags; empty if there are none. Takes about twenty rows of forward passes."""
    probe, pure = make_probe(network, process, seed), pure_noise(network, process, seed)
    findings = []
    eps = _eps(network, pure, process)
    agreement = _agreement(eps, pure)
    if not agreement >= LOWEST_AGREEMENT:  # also NaN
        findings.append(f"at pure noise its eps agrees with the noise by {agreement:.3f}; 0.999 is usual")
    given, given_pure = _error(_eps(network, probe, process), probe), _error(eps, pure)
    groups = [{name: error / given for name, error in _other_readings(network, probe, pure, process)}]
    if process.mean_type is MeanType.EPSILON:  # pure noise hardly tests a network that predicts x0
        groups.append({name: error / given_pure for name, error in _other_timesteps(network, pure, process)})
    # Only the first group with a better reading is reported: other readings of the weights, then other timesteps. If a
    # network predicts x0 but its flags state eps, its error changes with the timesteps too, although they are right.
    for ratios in groups:
        best = min(ratios, key=ratios.__getitem__)
        if ratios[best] < CLEARLY_BETTER:
            return [*findings, f"it finds noise better with {best}: {ratios[best]:.2f} of the squared error"]
    return findings


@torch.no_grad()
def noise_agreement(network: UNet, process: DiffusionProcess, seed: int = 0) -> float:
    """Cosine of a network's eps and the noise if its input is noise alone; 0.999 is usual."""
    pure = pure_noise(network, process, seed)
    return _agreement(_eps(network, pure, process), pure)


def check_classifier(classifier: NoisyClassifier, process: DiffusionProcess, seed: int = 0) -> list[str]:
    """Doubts about a classifier, which should see no class in pure noise."""
    device, size = next(classifier.parameters()).device, classifier.config.image_size
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(device)
    t = torch.full((4,), float(process.network_timesteps[-1]), device=device)
    with torch.no_grad():
        rows = zip(x.split(1), t.split(1), strict=True)  # one at a time, as in _eps
        log_p = torch.cat([classifier(*row) for row in rows]).float().log_softmax(-1)
    entropy = float(-(log_p.exp() * log_p).sum(-1).mean()) / math.log(classifier.config.out_channels)
    if entropy >= LOWEST_ENTROPY:
        return []
    return [f"it sees classes in pure noise: entropy {entropy:.2f} of log(classes)"]


def make_probe(network: UNet, process: DiffusionProcess, seed: int) -> Probe:
    """A smooth random image with the same noise at each of NOISE_FRACTIONS."""
    generator, size, count = torch.Generator().manual_seed(seed), network.config.image_size, len(NOISE_FRACTIONS)
    coarse = torch.rand(1, 3, 4, 4, generator=generator) * 1.4 - 0.7
    image = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=True).expand(count, -1, -1, -1)
    if process.grey:
        image = channel_mean(image)
    noise = torch.randn(1, 3, size, size, generator=generator).expand(count, -1, -1, -1)
    schedule = process.schedule
    rows = torch.tensor([int(fraction * (schedule.num_timesteps - 1)) for fraction in NOISE_FRACTIONS])
    alpha_bar = schedule.alpha_bar[rows].float()
    weight = alpha_bar[:, None, None, None]
    x = weight.sqrt() * image + (1 - weight).sqrt() * noise
    timesteps = process.network_timesteps[rows].float()
    device = next(network.parameters()).device
    return Probe(*(each.to(device) for each in (x, noise, alpha_bar, timesteps, F.avg_pool2d(image, 2))))


def pure_noise(network: UNet, process: DiffusionProcess, seed: int) -> Probe:
    """Inputs of noise alone, at the last timestep."""
    size, device = network.config.image_size, next(network.parameters()).device
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(device)
    timesteps = process.network_timesteps[-1:].float().to(device).expand(2)
    alpha_bar = process.schedule.alpha_bar[-1:].float().to(device).expand(2)
    return Probe(noise, noise, alpha_bar, timesteps, torch.zeros_like(noise))


def _eps(network: UNet, probe: Probe, process: DiffusionProcess) -> Tensor:
    return _as_eps(_predict(network, probe), probe, process.mean_type, grey=process.grey)


def _as_eps(output: Tensor, probe: Probe, mean_type: MeanType, *, grey: bool) -> Tensor:
    weight = probe.alpha_bar[:, None, None, None]
    deviation = (1 - weight).sqrt()
    eps = output if mean_type is MeanType.EPSILON else (probe.x - weight.sqrt() * output) / deviation
    return grey_eps(eps, probe.x, deviation) if grey else eps


def _predict(network: UNet, probe: Probe) -> Tensor:
    """The network's output, row by row, because the device may have room for one row only."""
    labels = None if network.config.num_classes is None else torch.zeros(1, dtype=torch.long, device=probe.x.device)
    rows = zip(probe.x.split(1), probe.timesteps.split(1), probe.low_res.split(1), strict=True)
    outputs = [
        network(x, t, labels, low_res=low_res) if isinstance(network, SuperResUNet) else network(x, t, labels)
        for x, t, low_res in rows
    ]
    return torch.cat(outputs)[:, :3].float()


def _agreement(eps: Tensor, pure: Probe) -> float:
    return float(F.cosine_similarity(eps.flatten(), pure.noise.flatten(), dim=0))


def _error(eps: Tensor, probe: Probe) -> float:
    """Geometric mean of the rows' squared errors, so that every noise level has the same weight."""
    return float((eps - probe.noise).square().mean((1, 2, 3)).clamp(min=1e-12).log().mean().exp())


def _other_readings(network: UNet, probe: Probe, pure: Probe, process: DiffusionProcess) -> Iterator[tuple[str, float]]:
    """The name of each other reading of the weights, and its error.

    A network that predicts x_0 and was trained on few kinds of pictures may predict so badly on the probe's images that
    the same output, treated as eps, has a smaller error. So it is read as eps only if it finds noise in pure noise, as
    a network that predicts eps does.
    """
    for reading, new_order, channels in _other_heads(network):
        with _heads(network, new_order, channels):
            yield reading, _error(_eps(network, probe, process), probe)
    given_eps = process.mean_type is MeanType.EPSILON
    other = MeanType.START_X if given_eps else MeanType.EPSILON
    reading = "predict_xstart" if given_eps else "eps in place of predict_xstart"
    if given_eps or _agreement(_predict(network, pure), pure) > NOISY_OUTPUT:
        yield reading, _error(_as_eps(_predict(network, probe), probe, other, grey=process.grey), probe)


def _other_timesteps(network: UNet, pure: Probe, process: DiffusionProcess) -> Iterator[tuple[str, float]]:
    # Only pure noise is used: with a wrong timestep a network expects some image, and finds less of the noise.
    for factor in (4.0, 0.25):
        eps = _eps(network, dataclasses.replace(pure, timesteps=pure.timesteps * factor), process)
        yield f"timesteps times {factor:g} (rescale_timesteps or diffusion_steps)", _error(eps, pure)


def _other_heads(network: UNet) -> Iterator[tuple[str, bool, int | None]]:
    """Yield name, new order and channels per head (None: unchanged) of each other reading of attention."""
    blocks = [each for each in network.modules() if isinstance(each, AttentionBlock)]
    order, widths = blocks[0].new_order, [block.norm.num_channels for block in blocks]
    given = {width // block.num_heads for width, block in zip(widths, blocks, strict=True)}
    yield f"{'legacy' if order else 'new'} attention order", not order, None
    for channels in (32, 64, math.gcd(*widths)):
        if given != {channels} and all(width % channels == 0 for width in widths):
            yield f"{counted(channels, 'channel')} a head", order, channels


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
