"""`adm evaluate`: both sides measured, compared, and told with all that the figures depend on."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from evaluation.extractors import Features, JudgeExtractor
from evaluation.scores import all_scores
from evaluation.sources import measure
from evaluation.statistics_file import Measured

TITLES = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
COUNTED = ("fid", "sfid", "inception_score", "recall", "coverage")  # which depend on how many images there are


@dataclass
class Watch:
    """Told how far an evaluation is."""

    on_part: Callable[[str, int], None] = lambda part, total: None
    on_images: Callable[[int], None] = lambda images: None


@dataclass(frozen=True)
class Evaluation:
    """What was found; as JSON it is what `compare` reads."""

    report: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def evaluate(
    samples: str,
    reference: str,
    extractor: JudgeExtractor,
    watch: Watch,
    *,
    strict: bool = False,
    made: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Score samples against a reference; made is what the provenance says of how the samples came to be, if anything.

    Raises: ValueError, one line, for what cannot be compared; OSError; WeightsError.
    """
    ours = measured(samples, extractor, None, watch, "samples", strict=strict)
    if not isinstance(ours.content, Features):
        raise ValueError(f"{samples}: holds moments without features; samples must be pictures, or have features")
    theirs = measured(reference, extractor, _width(ours), watch, "reference", strict=strict)
    sizes = [each.provenance["size"] for each in (ours, theirs)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise ValueError(f"the samples are {sizes[0]} and the reference is {sizes[1]}; make them of one size")
    scores, notes = all_scores(ours.content, theirs.content, lambda metric: watch.on_part(metric, 1))
    if ours.provenance["sha256"] == theirs.provenance["sha256"]:
        notes.insert(0, "the reference is the samples themselves, picture for picture")
    notes += [note for side, each in (("samples", ours), ("reference", theirs)) for note in _skipped(side, each)]
    provenance = {"samples": dict(ours.provenance) | dict(made or {}), "reference": dict(theirs.provenance)}
    versions = {"adm-serve": version("adm-serve"), "torch": torch.__version__, "python": platform.python_version()}
    metrics = {name: asdict(figure) for name, figure in scores.items()}
    return Evaluation(
        {"metrics": metrics, **provenance, "extractor": extractor.identity, "versions": versions, "notes": notes}, notes
    )


def measured(
    source: str, extractor: JudgeExtractor, shapes_size: int | None, watch: Watch, part: str, *, strict: bool
) -> Measured:
    """One side. Raises: as evaluate."""
    return measure(
        source,
        extractor,
        shapes_size,
        strict=strict,
        on_total=lambda total: watch.on_part(part, total),
        on_images=watch.on_images,
    )


def _width(each: Measured) -> int | None:
    return int(str(each.provenance["size"]).partition("x")[0])


def _skipped(side: str, each: Measured) -> Iterator[str]:
    if skipped := each.provenance.get("skipped"):
        yield f"{side}: {len(skipped)} files could not be read, first {skipped[0]['file']} ({skipped[0]['reason']})"


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """The figures, a line each."""
    yield f"{'':16}{'value':>10}  {'95 % interval':>23}"
    for name, each in report["metrics"].items():
        ends = "too few images" if each["low"] is None else f"{each['low']:10.4f} to {each['high']:9.4f}"
        bias = "" if each["bias"] is None else f"  bias about {each['bias']:.3g}"
        yield f"{TITLES[name]:16}{each['value']:10.4f}  {ends:>23}{bias}"


def read_report(path: Path) -> dict[str, Any]:
    """A report that --json wrote. Raises: ValueError, one line; OSError."""
    try:
        report = json.loads(path.read_bytes())
        for name in ("samples", "reference", "extractor"):
            report[name]["sha256"]
        report["samples"]["images"]
        for each in report["metrics"].values():
            each["value"], each["low"], each["high"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: is no report of adm evaluate --json ({type(error).__name__}: {error})") from error
    return dict(report)


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    """Which metrics differ by more than chance, a line each; the intervals are taken as independent.

    Raises: ValueError for reports of other extractors or references, whose figures have nothing to do with each other.
    """
    for what in ("extractor", "reference"):
        a, b = first[what]["sha256"], second[what]["sha256"]
        if a != b:
            raise ValueError(f"the reports are of another {what} each ({a}, {b}); their figures cannot be compared")
    counts = [report["samples"]["images"] for report in (first, second)]
    yield f"{'':16}{'first':>10}{'second':>10}{'difference':>12}  {'95 % interval':>23}"
    for name, title in TITLES.items():
        if name in first["metrics"] and name in second["metrics"]:
            yield _difference(title, first["metrics"][name], second["metrics"][name])
    if counts[0] != counts[1]:
        affected = ", ".join(TITLES[name] for name in COUNTED)
        yield f"note: {counts[0]} and {counts[1]} images: {affected} depend on the number of images; make it equal"


def _difference(title: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    difference = second["value"] - first["value"]
    start = f"{title:16}{first['value']:10.4f}{second['value']:10.4f}{difference:12.4f}"
    if first["low"] is None or second["low"] is None:
        return f"{start}  {'too few images':>23}"
    half = (_half(first) ** 2 + _half(second) ** 2) ** 0.5
    verdict = "larger than chance" if abs(difference) > half else "within chance"
    return f"{start}  {difference - half:10.4f} to {difference + half:9.4f}  {verdict}"


def _half(figure: Mapping[str, Any]) -> float:
    """Half the width of an interval, of the side that its metric's bounds have cut less."""
    return float(max(figure["value"] - figure["low"], figure["high"] - figure["value"]))
