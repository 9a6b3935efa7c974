"""Cases of the evaluator: FID, sFID, Inception score, precision and recall from given activations."""

import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor

from evaluation.frechet import Moments, frechet_distance
from evaluation.inception_score import OFFICIAL_SPLIT, class_probabilities, inception_score
from evaluation.precision_recall import precision_recall
from tests.golden_runner.case import Case, CaseError

SCALED = re.compile(r"float32\(in/[^)]*\)\s*/\s*(\d+)(?:\s*-\s*(\d+))?")


def evaluator(case: Case) -> dict[str, Tensor]:
    case.config.take("warnings")
    if "cases" in case.config:
        return _from_statistics(case)
    if "nhood_sizes" in case.config:
        return _precision_recall(case)
    if "probs" in case.inputs:
        return _scores_of_probabilities(case)
    if any("acts" in name for name in case.inputs):
        return _scores_of_activations(case)
    if "ref" in case.inputs:
        return _distances(case)
    raise CaseError("unknown evaluator case: neither statistics, neighbourhoods, probabilities nor feature sets")


def _decoded(case: Case, name: str) -> Tensor:
    """An input as the case's `decode` says: as stored, or float32 divided and shifted."""
    stored, rule = case.inputs[name], case.config.take("decode", "as stored")
    if rule == "as stored":
        return stored
    if not (match := SCALED.search(rule)):
        raise CaseError(f"unknown decode {rule!r}")
    return stored.float() / float(match[1]) - float(match[2] or 0)


def _answers(case: Case, known: dict[str, Tensor | float]) -> dict[str, Tensor]:
    """The known values that the case expects."""
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in known.items() if name in case.expected}


def _distances(case: Case) -> dict[str, Tensor]:
    for field in ("mu_dtype", "sigma_dtype"):
        case.config.take(field)  # of the reference; here all is float64
    reference, sample = (Moments.of(_decoded(case, name)) for name in ("ref", "sample"))
    fid = frechet_distance(reference, sample)
    return _answers(
        case,
        {
            "fid": fid,
            "fid_symmetric_eig": fid,
            "fid_swapped": frechet_distance(sample, reference),
            "mu_1": reference.mean,
            "mu_2": sample.mean,
            "sigma_1": reference.covariance,
            "sigma_2": sample.covariance,
        },
    )


def _from_statistics(case: Case) -> dict[str, Tensor]:
    got = {}
    for name in case.config.take("cases"):
        a, b = (Moments(case.inputs[f"{name}/mu_{i}"], case.inputs[f"{name}/sigma_{i}"]) for i in (1, 2))
        got[name] = torch.tensor(frechet_distance(a, b), dtype=torch.float64)
    case.config.take("decode")
    return got


def _precision_recall(case: Case) -> dict[str, Tensor]:
    config = case.config
    config.take("results")  # what the reference answers in other precisions, for a reader
    block = config.need("row_batch_size")
    config.take("col_batch_size")  # ours takes all columns at once
    found = precision_recall(_decoded(case, "ref"), _decoded(case, "sample"), config.need("nhood_sizes"), block)
    return {
        "precision": found.precision,
        "recall": found.recall,
        "radii_ref": found.reference_radii,
        "radii_sample": found.sample_radii,
    }


def _scores(probabilities: Tensor, names: Iterable[str], default_split: int) -> dict[str, Tensor]:
    got = {}
    for name in names:
        size = re.fullmatch(r"score(?:_split_(\d+))?", name)
        if size:
            score = inception_score(probabilities, int(size[1] or default_split))
            got[name] = torch.tensor(score, dtype=torch.float64)
    return got


def _scores_of_probabilities(case: Case) -> dict[str, Tensor]:
    case.config.take("decode")
    got = _scores(case.inputs["probs"], case.expected, case.config.take("default_split", OFFICIAL_SPLIT))
    if "score_with_exact_zero" in case.expected:
        # The official evaluator multiplies 0 by minus infinity there; ours takes the limit.
        assert math.isfinite(inception_score(case.inputs["probs_zero"]))
        got["score_with_exact_zero"] = torch.tensor(math.nan, dtype=torch.float64)
    return got


def _scores_of_activations(case: Case) -> dict[str, Tensor]:
    (name,) = (name for name in case.inputs if "acts" in name)
    probabilities = class_probabilities(_decoded(case, name), case.inputs["W"])
    got = _scores(probabilities, case.expected, case.config.take("default_split", OFFICIAL_SPLIT))
    if "softmax_head" in case.expected:
        got["softmax_head"] = probabilities[: len(case.expected["softmax_head"])]
    return got
