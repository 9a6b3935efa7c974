"""`adm evaluate`: measures samples and a reference, scores the samples, and reports all that the figures depend on."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from scipy.special import stdtrit

from evaluation.extractors import Extractor, Features
from evaluation.feature_files import Work
from evaluation.machine import machine, versions
from evaluation.neighbourhood import Nearest
from evaluation.scores import all_scores
from evaluation.sources import measure
from evaluation.statistics_file import Measured
from files.checkout import commit
from vocabulary.counts import counted

TITLES = {
    "fid": "FID",
    "fid_infinity": "FID, extrapolated",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "authenticity": "authenticity",
}
COUNTED = ("fid", "sfid", "inception_score", "recall", "coverage")  # metrics that depend on the number of images
CLOSEST = 20  # nearest pairs of a sample and a reference image in a report


@dataclass
class Watch:
    """Shows the progress of an evaluation."""

    on_part: Callable[[str, int], None] = lambda part, total: None
    on_images: Callable[[int], None] = lambda images: None


@dataclass(frozen=True)
class Evaluation:
    """The report as JSON, which `compare` reads, and both sides, whose pictures a page may show."""

    report: dict[str, Any]
    samples: Measured
    reference: Measured


def evaluate(ours: Measured, theirs: Measured, extractor: Extractor, watch: Watch) -> Evaluation:
    """Score samples against a reference.

    Raises: ValueError, one line, for sides that cannot be compared.
    """
    samples, reference = ours.provenance, theirs.provenance
    if not isinstance(ours.content, Features):
        raise ValueError(
            f"{samples['source']}: has moments without features, so it can only be --against; give pictures as SAMPLES"
        )
    sizes = [samples["size"], reference["size"]]
    if None not in sizes and sizes[0] != sizes[1]:
        raise ValueError(f"the samples are {sizes[0]} and the reference is {sizes[1]}; make them of one size")
    scores = all_scores(ours.content, theirs.content, lambda metric: watch.on_part(metric, 1))
    notes = list(scores.notes)
    if samples["sha256"] == reference["sha256"]:
        notes.insert(0, "the reference is the samples themselves, picture for picture")
    notes += [note for side, each in (("samples", ours), ("reference", theirs)) for note in _skipped(side, each)]
    report = {
        "metrics": {name: asdict(scores.figures[name]) for name in TITLES if name in scores.figures},
        "samples": dict(samples),
        "reference": dict(reference),
        "extractor": extractor.identity,
        "growth": scores.growth,
        "nearest": None if scores.nearest is None else closest(scores.nearest),
        "versions": versions(),
        "machine": machine(),
        "commit": commit(),
        "notes": notes,
    }
    return Evaluation(report, ours, theirs)


def closest(nearest: Nearest) -> dict[str, Any]:
    """The samples nearest to the reference, each with its nearest image, and the median distances of the sets."""
    order = nearest.distance.argsort()[:CLOSEST].tolist()
    return {
        "closest": [
            {"sample": index, "reference": int(nearest.index[index]), "distance": float(nearest.distance[index])}
            for index in order
        ],
        "median_distance": float(nearest.distance.median()),
        "median_within_reference": float(nearest.within_reference.median()),
    }


def over_seeds(seeds: Sequence[int], reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every metric's values over seeds, their mean and its 95 % interval by Student's t."""
    found = {}
    for name in reports[0]["metrics"]:
        values = torch.tensor([report["metrics"][name]["value"] for report in reports], dtype=torch.float64)
        half = float(stdtrit(len(values) - 1, 0.975)) * float(values.std()) / len(values) ** 0.5
        mean = float(values.mean())
        found[name] = {"values": values.tolist(), "mean": mean, "low": mean - half, "high": mean + half}
    return {"seeds": list(seeds), "metrics": found}


def measure_side(
    source: str,
    extractor: Extractor,
    shapes_size: int | None,
    watch: Watch,
    part: str,
    work: Work,
    *,
    strict: bool,
) -> Measured:
    """Measure one side. Raises: ValueError, one line; OSError; WeightsError."""
    return measure(
        source,
        extractor,
        shapes_size,
        work,
        part,
        strict=strict,
        on_total=lambda total: watch.on_part(part, total),
        on_images=watch.on_images,
    )


def width(each: Measured) -> int | None:
    """The edge of a set's pictures, in pixels; None for moments without a known size."""
    size = each.provenance["size"]
    return None if size is None else int(size.partition("x")[0])


def _skipped(side: str, each: Measured) -> Iterator[str]:
    if skipped := each.provenance.get("skipped"):
        first = f"{skipped[0]['file']} ({skipped[0]['reason']})"
        yield f"{side}: {counted(len(skipped), 'file')} could not be read, first {first}"


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """The figures, one line each."""
    yield f"{'':16}{'value':>10}  {'95 % interval':>23}"
    for name, each in report["metrics"].items():
        ends = "too few images" if each["low"] is None else f"{each['low']:10.4f} to {each['high']:9.4f}"
        bias = "" if each["bias"] is None else f"  bias about {each['bias']:.3g}"
        yield f"{TITLES[name]:16}{each['value']:10.4f}  {ends:>23}{bias}"
    if seeds := report.get("seeds"):
        yield f"{'':16}{'mean':>10}  {'95 % interval':>23}  over seeds {', '.join(map(str, seeds['seeds']))}"
        for name, each in seeds["metrics"].items():
            yield f"{TITLES[name]:16}{each['mean']:10.4f}  {each['low']:10.4f} to {each['high']:9.4f}"


def read_report(path: Path) -> dict[str, Any]:
    """A report that --json wrote. Raises: ValueError, one line; OSError."""
    try:
        report = json.loads(path.read_bytes())
        for name in ("samples", "reference", "extractor"):
            report[name]["sha256"]
        report["samples"]["images"]
        for name, each in report["metrics"].items():
            ends = [each["low"], each["high"]]
            if not all(map(isfinite, [each["value"], *([] if ends == [None, None] else ends)])):
                raise ValueError(f"{name} is not finite")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: is no report of adm evaluate --json ({type(error).__name__}: {error})") from error
    return dict(report)


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """The metrics that differ by more than chance, one line each; intervals are assumed to be independent.

    Raises: ValueError for reports with different extractors or references, whose figures cannot be compared.
    """
    for what in ("extractor", "reference"):
        a, b = first[what]["sha256"], second[what]["sha256"]
        if a != b:
            raise ValueError(f"the reports are of different {what}s ({a}, {b}); their figures cannot be compared")
    if not first["metrics"].keys() & second["metrics"].keys() & TITLES.keys():
        raise ValueError("the reports have no metric in common")
    counts = [report["samples"]["images"] for report in (first, second)]
    yield f"{'':16}{'first':>10}{'second':>10}{'difference':>12}  {'95 % interval':>23}"
    for name, title in TITLES.items():
        if name in first["metrics"] and name in second["metrics"]:
            yield _difference(title, first["metrics"][name], second["metrics"][name])
    if counts[0] != counts[1]:
        affected = ", ".join(TITLES[name] for name in COUNTED)
        yield f"note: {counts[0]} and {counts[1]} images: {affected} depend on the number of images; use equal numbers"


def _difference(title: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    difference = second["value"] - first["value"]
    start = f"{title:16}{first['value']:10.4f}{second['value']:10.4f}{difference:12.4f}"
    if first["low"] is None or second["low"] is None:
        return f"{start}  {'too few images':>23}"
    half = (_half(first) ** 2 + _half(second) ** 2) ** 0.5
    verdict = "larger than chance" if abs(difference) > half else "within chance"
    return f"{start}  {difference - half:10.4f} to {difference + half:9.4f}  {verdict}"


def _half(figure: Mapping[str, Any]) -> float:
    """Half the width of an interval, from its longer side, because a bound of the metric may have cut the other."""
    return float(max(figure["value"] - figure["low"], figure["high"] - figure["value"]))
