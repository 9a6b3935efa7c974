"""The Inception score, against closed forms and bounds."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.inception_score import class_probabilities, inception_score


def softmaxed(seed: int, count: int, classes: int) -> torch.Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed)).mul(3).softmax(dim=1)


@given(seed=st.integers(0, 99), count=st.integers(1, 40), classes=st.integers(1, 12), split=st.integers(1, 50))
def test_score_is_between_1_and_the_number_of_classes(seed: int, count: int, classes: int, split: int) -> None:
    score = inception_score(softmaxed(seed, count, classes), split)
    assert 1 - 1e-9 <= score <= classes + 1e-9


def test_sure_answers_over_all_classes_score_the_number_of_classes() -> None:
    almost = torch.eye(7).mul(60).softmax(dim=1)
    assert inception_score(almost) == pytest.approx(7, rel=1e-6)


def test_one_answer_for_every_image_scores_1() -> None:
    assert inception_score(torch.tensor([[0.2, 0.8]]).repeat(9, 1)) == pytest.approx(1)


def test_an_exact_zero_adds_nothing_as_in_the_limit() -> None:
    near = inception_score(torch.tensor([[1e-30, 1.0], [0.5, 0.5]], dtype=torch.float64))
    assert inception_score(torch.tensor([[0.0, 1.0], [0.5, 0.5]])) == pytest.approx(near)
    underflowing = torch.eye(7).mul(200).softmax(dim=1)
    assert bool((underflowing == 0).any())
    assert inception_score(underflowing) == pytest.approx(7)


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (torch.zeros(0, 4), "the Inception score: a set has 0 samples, fewer than 1"),
        (torch.tensor([[0.5, math.nan]]), "sample 0 of 1 has NaN or infinity"),
    ],
)
def test_probabilities_without_a_score_are_refused(probabilities: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inception_score(probabilities)


def test_probabilities_leave_the_bias_out() -> None:
    features, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, math.log(3)], [5.0, 5.0]])
    assert class_probabilities(features, weight)[0].tolist() == pytest.approx([0.25, 0.75])
