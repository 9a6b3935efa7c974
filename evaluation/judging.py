"""Applies the judge to a set of images."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.pixels import from_uint8
from evaluation.frechet import Moments, frechet_distance
from evaluation.intervals import mean_interval, wilson_interval
from evaluation.precision_recall import precision_recall
from models.networks.judge import Judge

BATCH = 100


@dataclass(frozen=True)
class Verdict:
    """The judge's probabilities [N, classes] and features [N, D] of a set."""

    probabilities: Tensor
    features: Tensor

    @property
    def moments(self) -> Moments:
        return Moments.of(self.features)

    def of(self, index: Tensor) -> "Verdict":
        """The verdict of the images at these indices."""
        return Verdict(self.probabilities[index], self.features[index])

    def agreement(self, class_labels: Tensor) -> dict[str, Any]:
        """The share of images whose label is the judge's answer, and its mean confidence in its answers."""
        confidence, answers = self.probabilities.max(dim=1)
        hits = int((answers == class_labels).sum())
        return {
            "images": len(class_labels),
            "agreement": round(hits / len(class_labels), 4),
            "agreement_95": [round(end, 4) for end in wilson_interval(hits, len(class_labels))],
            "confidence": round(float(confidence.mean()), 4),
            "confidence_95": [round(end, 4) for end in mean_interval(confidence)],
        }

    def closeness(self, reference: "Verdict") -> dict[str, float]:
        """FID, precision and recall against a reference set, in the judge's features."""
        covered = precision_recall(reference.features, self.features)
        return {
            "fid": distance(reference, self),
            "precision": round(float(covered.precision), 4),
            "recall": round(float(covered.recall), 4),
        }


@torch.no_grad()
def judge_images(judge: Judge, pixels: Tensor) -> Verdict:
    """Judge images [N, 3, H, W] uint8; larger ones are reduced by area to the judge's size."""
    probabilities, features = [], []
    for batch in pixels.split(BATCH):
        pooled = judge.features(judged_input(judge, batch))
        features.append(pooled)
        probabilities.append(judge.head(pooled).softmax(dim=1))
    return Verdict(torch.cat(probabilities), torch.cat(features))


def judged_input(judge: Judge, pixels: Tensor) -> Tensor:
    """The judge's input for images [N, 3, H, W] uint8; larger ones are reduced by area to its size."""
    x, size = from_uint8(pixels), judge.config.image_size
    return x if x.shape[-1] == size else F.interpolate(x, (size, size), mode="area")


def add_noise(pixels: Tensor, strength: float, seed: int) -> Tensor:
    """8-bit images with Gaussian noise of deviation `strength`, in 255ths, rounded to 8 bits."""
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return (pixels.float() + strength * noise).round().clamp(0, 255).to(torch.uint8)


def sharpness(pixels: Tensor) -> float:
    """Mean absolute Laplacian of the grey image, in 255ths; low for bicubic enlargement."""
    grey = pixels.float().mean(dim=1, keepdim=True)
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]).reshape(1, 1, 3, 3)
    return float(F.conv2d(grey, kernel).abs().mean())


def colour_error(small: Tensor, large: Tensor) -> float:
    """Mean difference, in 255ths, of small images and their reduced enlargements; an upsampler should keep it low."""
    reduced = F.interpolate(large.float(), small.shape[2:], mode="area")
    return float((reduced - small.float()).abs().mean())


def distance(a: Verdict, b: Verdict) -> float:
    """FID in the judge's features."""
    return round(frechet_distance(a.moments, b.moments), 4)
