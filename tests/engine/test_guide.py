"""Guidance: what moves an image, by how much, and towards what."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion.guidance import ENTROPY_FACTOR_MAX, entropy_factor, guidance_gradient, one_hot, row_sums
from engine.guide import Guide
from models.networks.classifier import NoisyClassifier
from tests.models.samples import CLASSIFIER, seeded, write_stack


def images(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def slope(classifier: NoisyClassifier, x: Tensor, t: Tensor, labels: Tensor, scale: Tensor | float) -> Tensor:
    guide = Guide.of_classifier(classifier)
    return guidance_gradient(guide.log_probabilities, x, t, one_hot(labels, guide.num_conditions), scale)


@pytest.mark.parametrize("trainable", [False, True])
def test_guidance_forms_no_gradient_of_the_weights(trainable: bool) -> None:
    classifier = seeded(NoisyClassifier(CLASSIFIER), 0).requires_grad_(trainable)
    gradient = slope(classifier, images(2, 8), torch.tensor([5, 600]), torch.tensor([0, 1]), 3.0)
    assert not gradient.requires_grad
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_guidance_gradient_is_each_images_own_and_grows_with_its_scale() -> None:
    classifier = seeded(NoisyClassifier(CLASSIFIER), 0)
    x, t, labels = images(3, 8), torch.tensor([5, 600, 40]), torch.tensor([0, 1, 2])
    scales = torch.tensor([1.0, 0.0, 4.0])
    together = slope(classifier, x, t, labels, scales)
    for i, scale in enumerate(scales.tolist()):
        one = slice(i, i + 1)
        alone = slope(classifier, x[one], t[one], labels[one], 1.0)
        torch.testing.assert_close(together[one], scale * alone, rtol=1e-4, atol=1e-6)


def test_guidance_gradient_is_the_slope_of_the_log_probability() -> None:
    classifier = seeded(NoisyClassifier(CLASSIFIER), 0)
    x, t, label = images(1, 8), torch.tensor([5]), torch.tensor([1])
    gradient = slope(classifier, x, t, label, 1.0)
    tiny = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        above, below = (classifier(at, t).log_softmax(dim=-1)[0, 1] for at in (x + tiny, x - tiny))
    torch.testing.assert_close(above - below, 2e-2 * gradient.norm(), rtol=1e-2, atol=1e-6)


def test_a_distribution_of_targets_is_the_weighted_sum_of_its_labels_slopes() -> None:
    classifier = seeded(NoisyClassifier(CLASSIFIER), 0)
    x, t = images(1, 8), torch.tensor([40])
    weights = torch.tensor([[0.25, 0.0, 0.75]])
    both = guidance_gradient(Guide.of_classifier(classifier).log_probabilities, x, t, weights, 2.0)
    first, last = (slope(classifier, x, t, torch.tensor([label]), 2.0) for label in (0, 2))
    torch.testing.assert_close(both, 0.25 * first + 0.75 * last, rtol=1e-4, atol=1e-6)


def test_entropy_scales_only_the_rows_that_ask_for_it() -> None:
    classifier = seeded(NoisyClassifier(CLASSIFIER), 0)
    x, t, targets = images(2, 8), torch.tensor([5, 5]), one_hot(torch.tensor([0, 1]), 3)
    guide = Guide.of_classifier(classifier)
    plain = guidance_gradient(guide.log_probabilities, x, t, targets, 3.0)
    mixed = guidance_gradient(guide.log_probabilities, x, t, targets, 3.0, torch.tensor([False, True]))
    factor = entropy_factor(guide.log_probabilities(x, t).detach())
    assert torch.equal(mixed[0], plain[0])
    torch.testing.assert_close(mixed[1], plain[1] * factor[1])


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=12))
def test_entropy_factor_is_bounded_and_1_for_a_classifier_that_knows_nothing(logits: list[float]) -> None:
    factor = float(entropy_factor(torch.tensor([logits]).log_softmax(dim=1)))
    assert 1 <= factor <= ENTROPY_FACTOR_MAX + 1e-4
    assert float(entropy_factor(torch.zeros(1, len(logits)).log_softmax(dim=1))) == pytest.approx(1, abs=1e-5)


def test_entropy_factor_of_a_certain_answer_is_the_bound() -> None:
    certain = torch.tensor([[0.0, -math.inf]])
    assert float(entropy_factor(certain)) == pytest.approx(ENTROPY_FACTOR_MAX)


def test_documented_guide_of_ones_own_steers(tmp_path: Path) -> None:
    """The example of docs/guidance.md, as it stands there, on a tiny stack."""
    text = Path("docs/guidance.md").read_text()
    example = text.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"WEIGHTS": write_stack(tmp_path / "tiny")}
    exec(compile(example, "docs/guidance.md", "exec"), names)  # noqa: S102 - our own page
    assert names["dark"].float().mean() + 20 < names["bright"].float().mean()


@pytest.mark.parametrize("columns", [1, 2, 3, 10, 1000, 1023])
def test_row_sums_add_each_value_once_in_an_order_of_the_columns_alone(columns: int) -> None:
    """torch's sum on a GPU would add in an order that depends on the number of rows too."""
    values = (
        torch.randn(40, columns, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-20, 20)[:, None]
    )
    together = row_sums(values)
    torch.testing.assert_close(together, values.double().sum(1).float(), rtol=1e-4, atol=0)
    assert torch.equal(together, torch.cat([row_sums(row[None]) for row in values]))
