"""Repeats the paper's claims on small models: measures rows, and draws charts of the measurements.

    python -m bench.paper [PART ...] [--images 500] [--precision bf16] [--draw]

Images are stored in runs/paper, in parts of 100, so that a stopped run resumes; so are the trainings of rows 1, 2, 3, 6
and 13, in runs/paper/trainings. Figures are written to bench/results/paper/PART.json, charts to
docs/paper/PART-NAME.svg; --draw only draws.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime

from bench.machine import machine
from bench.paper.core import IMAGES, REFERENCE_IMAGES, RESULTS, ROOT, Lab
from bench.paper.guidance import CONFIDENCE, GUIDANCE
from bench.paper.neighbours import NEIGHBOURS
from bench.paper.reconstruction import RECONSTRUCTION
from bench.paper.row import Row
from bench.paper.stages import STAGES
from bench.paper.steps import COST, STEPS
from bench.paper.temperature import TEMPERATURE
from bench.paper.trainings.architecture import ARCHITECTURE, HEADS, NORM
from bench.paper.trainings.compute import COMPUTE, COVERAGE
from bench.paper.variance import VARIANCE
from vocabulary.precisions import PRECISIONS

CHARTS = ROOT / "docs" / "paper"
SAMPLING = (GUIDANCE, STEPS, STAGES, VARIANCE, RECONSTRUCTION, NEIGHBOURS, TEMPERATURE, CONFIDENCE, COST)
TRAINING = (ARCHITECTURE, HEADS, NORM, COVERAGE, COMPUTE)
ROWS = (*SAMPLING, *TRAINING)


def measure(row: Row, lab: Lab) -> None:
    points = row.measure(lab)
    checks = row.checks(points)
    content = {
        "row": row.number,
        "claim": row.claim,
        "published": row.published,
        "date": datetime.now(UTC).date().isoformat(),
        "images": lab.images,
        "reference_images": REFERENCE_IMAGES,
        "precision": lab.precision,
        "machine": machine(),
        "checks": checks,
        "points": points,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{row.part}.json").write_text(json.dumps(content, indent=1) + "\n")
    for sentence, holds in checks.items():
        print(f"{row.part}: {'yes' if holds else 'no '} {sentence}", flush=True)


def draw(row: Row) -> None:
    CHARTS.mkdir(parents=True, exist_ok=True)
    points = json.loads((RESULTS / f"{row.part}.json").read_text())["points"]
    for name, svg in row.charts(points).items():
        (CHARTS / f"{row.part}-{name.replace('_', '-')}.svg").write_text(svg)


def main(arguments: Sequence[str] | None = None) -> None:
    parts = {row.part: row for row in ROWS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--images", type=int, default=IMAGES, help="per cell, in parts of 100")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: no such part; there are {', '.join(parts)}")
    lab = Lab(options.precision, options.images)
    for name in options.parts or parts:
        if not options.draw:
            measure(parts[name], lab)
        draw(parts[name])


if __name__ == "__main__":
    main()
