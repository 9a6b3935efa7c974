"""FID's Inception beside torch-fidelity's, with the same random weights."""

import random
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from evaluation.extractors import InceptionExtractor
from evaluation.inception_score import class_probabilities
from models.networks.inception import SPATIAL_CHANNELS, Inception

CASES = range(3)


def fill(network: nn.Module) -> None:
    """Weights with which activations neither vanish nor explode on their way."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.weight, module.running_var):
                    assert values is not None
                    values.uniform_(0.5, 1.5)
                for values in (module.bias, module.running_mean):
                    assert values is not None
                    values.normal_(std=0.1)


@pytest.mark.parametrize("case", CASES)
def test_features_and_classes_are_theirs(case: int, draw: random.Random, tmp_path: Path) -> None:
    layers = ["2048", "logits_unbiased"]
    path = tmp_path / "weights.pth"
    own = Inception()
    fill(own)
    torch.save(own.state_dict(), path)  # which theirs loads strictly: keys and shapes are equal
    theirs = FeatureExtractorInceptionV3("inception", layers, feature_extractor_weights_path=str(path))
    spatial = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, answer: spatial.append(answer))
    size = draw.choice([32, 64, 100, 299, 320])
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        pooled, logits = theirs(pixels)
    found = InceptionExtractor(path)(pixels)
    assert found.spatial is not None
    assert found.probabilities is not None
    assert_close(found.pooled, pooled.float())
    assert_close(found.probabilities, logits.float().softmax(dim=1))
    places = spatial[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # as [N, 17, 17, 7] of TensorFlow lies
    assert_close(found.spatial, places.float())
    assert torch.allclose(class_probabilities(pooled.float(), theirs.fc.weight.T), found.probabilities, atol=1e-4)


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.shape == want.shape
    assert float((got - want).abs().max()) < 1e-3 * float(want.abs().max())
