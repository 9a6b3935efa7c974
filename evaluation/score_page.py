"""The page of one evaluation: figures, pictures, classes, neighbours, and all that they depend on."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from evaluation.extractors import Features
from evaluation.html_report import (
    figures_table,
    growth_chart,
    html_table,
    json_block,
    origin,
    page,
    picture,
    published_table,
)
from evaluation.report import TITLES, Evaluation
from vocabulary.counts import counted

GRID = 64  # pictures of samples that are shown
OF_A_CLASS = 5  # best and worst pictures of each class
CLASSES = 20  # most classes with best and worst pictures and a confusion table; more do not fit on a page
PAIRS = 12


def score_page(evaluation: Evaluation) -> str:
    """The page, with pictures if thumbnails were stored. Names come from untrusted files and are escaped."""
    report = evaluation.report
    source, reference = (str(report[side]["source"]) for side in ("samples", "reference"))
    parts = [f"<p>{counted(report['samples']['images'], 'image')} of {escape(str(report['samples']['size']))}.</p>"]
    parts += [f'<p class="note">{escape(note)}</p>' for note in report["notes"]]
    parts.append(figures_table(report["metrics"]))
    if "seeds" in report:
        parts.append(seeds_table(report["seeds"]))
    if len(report["growth"]) > 1:
        parts.append(growth_chart(report["growth"], report["metrics"]["fid_infinity"]["value"]))
    parts += pictures(evaluation)
    parts.append(f"<h2>Published</h2>{published_table()}")
    sides = {
        side: {name: each for name, each in report[side].items() if name != "extractor"}
        for side in ("samples", "reference")
    }
    parts.append(f"<h2>Settings</h2>{json_block(sides)}<h2>Computed by</h2>{origin(report)}")
    return page(f"{source} against {reference}", parts)


def seeds_table(seeds: dict[str, Any]) -> str:
    """Every metric over the seeds."""
    rows = [
        (TITLES[name], each["mean"], each["low"], each["high"], *each["values"])
        for name, each in seeds["metrics"].items()
    ]
    return "<h2>Over seeds</h2>" + html_table(("", "mean", "95 % from", "to", *map(str, seeds["seeds"])), rows)


def pictures(evaluation: Evaluation) -> Iterator[str]:
    """The sections that show pictures."""
    features, kept = evaluation.samples.content, evaluation.samples.kept
    thumbnails = None if kept is None else kept.thumbnails()
    if kept is None or thumbnails is None or not isinstance(features, Features):
        return
    yield "<h2>Samples</h2>" + "".join(picture(each) for each in thumbnails[:GRID])
    if features.probabilities is not None:
        yield from classes_shown(features.probabilities, labels(kept.batches, kept.count), thumbnails)
    yield from neighbours(evaluation, thumbnails)


def classes_shown(probabilities: Tensor, asked: Tensor | None, thumbnails: Tensor) -> Iterator[str]:
    """The images of each class that is known, or that the extractor sees, and a confusion table of known classes."""
    answers = probabilities.argmax(dim=1)
    yield from by_class(probabilities, answers if asked is None else asked, thumbnails, known=asked is not None)
    if asked is not None and probabilities.shape[1] <= CLASSES:
        yield "<h2>Confusion</h2><p>Rows: the class that was asked for; columns: the extractor's answer.</p>"
        yield confusion_table(asked, answers, probabilities.shape[1])


def labels(batches: Sequence[dict[str, Any]], count: int) -> Tensor | None:
    """The requested class of each image, [N]; None if unknown."""
    found = torch.full((count,), -1)
    for batch in batches:
        if batch.get("class_label") is None:
            return None
        found[torch.tensor(batch["indices"])] = batch["class_label"]
    return found


def by_class(probabilities: Tensor, classes: Tensor, thumbnails: Tensor, *, known: bool) -> Iterator[str]:
    """The images of each class with the highest and the lowest probability of the extractor."""
    what = "asked for" if known else "that the extractor sees"
    yield f"<h2>Best and worst by class</h2><p>By the probability of the class {what}.</p><table>"
    sure = probabilities.gather(1, classes[:, None].clamp(max=probabilities.shape[1] - 1))[:, 0]
    for label in classes.unique(sorted=True)[:CLASSES].tolist():
        members = (classes == label).nonzero()[:, 0]
        order = members[sure[members].argsort(descending=True)].tolist()
        best, worst = order[:OF_A_CLASS], order[OF_A_CLASS:][-OF_A_CLASS:]
        cells = ("".join(picture(thumbnails[place], f"{sure[place]:.3f}") for place in side) for side in (best, worst))
        yield f"<tr><td>{label}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table>"


def confusion_table(asked: Tensor, answers: Tensor, classes: int) -> str:
    """A table of the number of images by class and answer."""
    rows = torch.zeros(classes, classes, dtype=torch.int64)
    rows.index_put_((asked, answers), torch.ones(len(asked), dtype=torch.int64), accumulate=True)
    return html_table(
        ("", *map(str, range(classes))),
        [(label, *(each or "" for each in row)) for label, row in enumerate(rows.tolist())],
    )


def neighbours(evaluation: Evaluation, thumbnails: Tensor) -> Iterator[str]:
    """The samples nearest to the reference, beside its images if they were stored."""
    nearest = evaluation.report["nearest"]
    if nearest is None:
        return
    theirs = evaluation.reference.kept
    beside = None if theirs is None else theirs.thumbnails()
    yield (
        "<h2>Nearest reference images</h2><p>The samples nearest to the reference in the extractor's "
        "features, each beside its nearest reference image. Half of the samples are within "
        f"{nearest['median_distance']:.4f} of their nearest reference image; half of the reference images are within "
        f"{nearest['median_within_reference']:.4f} of their nearest other one.</p>"
    )
    for pair in nearest["closest"][:PAIRS]:
        caption = f"{pair['sample']} and {pair['reference']}: {pair['distance']:.3f}"
        both = picture(thumbnails[pair["sample"]]) + ("" if beside is None else picture(beside[pair["reference"]]))
        yield f"<figure>{both}<figcaption>{escape(caption)}</figcaption></figure>"
