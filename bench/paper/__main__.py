"""Repeats the paper's claims on small models: measures rows, and draws charts of the measurements.

    python -m bench.paper [PART ...] [--stack demo] [--images 500] [--precision bf16] [--draw]

Images are stored in runs/paper, in parts of 100, so that a stopped run resumes; so are the trainings of rows 1, 2, 3, 6
and 13, in runs/paper/trainings. Figures are written to bench/results/paper/PART.json, charts to
docs/paper/PART-NAME.svg; those of --stack fashion to a folder fashion in each. --draw only draws.
Fashion reads data/fashion-mnist (adm data fetch fashion-mnist). It has no row 9 (stages), because it has no upsampler,
and none of the trained rows, which train on shapes.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime

from bench.machine import machine
from bench.paper.core import IMAGES, RESULTS, ROOT, Lab
from bench.paper.guidance import CONFIDENCE, GUIDANCE
from bench.paper.neighbours import NEIGHBOURS
from bench.paper.reconstruction import RECONSTRUCTION
from bench.paper.row import Row
from bench.paper.stages import STAGES
from bench.paper.steps import COST, STEPS
from bench.paper.subject import DEMO, FASHION, SUBJECTS, Subject
from bench.paper.temperature import TEMPERATURE
from bench.paper.trainings.architecture import ARCHITECTURE, HEADS, NORM
from bench.paper.trainings.compute import COMPUTE, COVERAGE
from bench.paper.variance import VARIANCE
from vocabulary.precisions import PRECISIONS

CHARTS = ROOT / "docs" / "paper"
SAMPLING = (GUIDANCE, STEPS, NEIGHBOURS, CONFIDENCE, COST, TEMPERATURE, VARIANCE, RECONSTRUCTION)
TRAINING = (ARCHITECTURE, HEADS, NORM, COVERAGE, COMPUTE)
ROWS = {DEMO.name: (*SAMPLING, STAGES, *TRAINING), FASHION.name: SAMPLING}


def measure(row: Row, lab: Lab) -> None:
    points = row.measure(lab)
    checks = row.checks(points)
    content = {
        "row": row.number,
        "claim": row.claim,
        "published": row.published,
        "date": datetime.now(UTC).date().isoformat(),
        "stack": lab.subject.name,
        "images": lab.images,
        "reference_images": lab.references,
        "precision": lab.precision,
        "machine": machine(),
        "checks": checks,
        "points": points,
    }
    results = RESULTS / lab.subject.subfolder
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{row.part}.json").write_text(json.dumps(content, indent=1) + "\n")
    for sentence, holds in checks.items():
        print(f"{row.part}: {'yes' if holds else 'no '} {sentence}", flush=True)


def draw(row: Row, subject: Subject) -> None:
    charts = CHARTS / subject.subfolder
    charts.mkdir(parents=True, exist_ok=True)
    points = json.loads((RESULTS / subject.subfolder / f"{row.part}.json").read_text())["points"]
    for name, svg in row.charts(points).items():
        (charts / f"{row.part}-{name.replace('_', '-')}.svg").write_text(svg)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="all, if none is given")
    parser.add_argument("--stack", choices=SUBJECTS, default=DEMO.name)
    parser.add_argument("--images", type=int, default=IMAGES, help="per cell, in parts of 100")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args(arguments)
    parts = {row.part: row for row in ROWS[options.stack]}
    if unknown := set(options.parts) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: no such part of {options.stack}; there are {', '.join(parts)}")
    lab = Lab(options.precision, options.images, subject=SUBJECTS[options.stack])
    for name in options.parts or parts:
        if not options.draw:
            measure(parts[name], lab)
        draw(parts[name], lab.subject)


if __name__ == "__main__":
    main()
