"""Compares the results of `make bench` with the goals: a table, and docs/benchmarks.svg.

    python -m bench.summary

Reads bench/results, which the other benchmarks write; a line that was not measured on this machine is marked.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from bench.names import COMPILED, COMPILED_FP32, EAGER, FIRST_STEP, KILLED, LONE, RATE, SPEED

ROOT = Path(__file__).parent
REACHED, MISSED = "#2b8a3e", "#d9480f"


@dataclass(frozen=True)
class Goal:
    """A figure of one result file, by its keys, and its lower or upper goal."""

    text: str
    file: str
    keys: tuple[str, ...]
    goal: float
    unit: str = "x"
    at_most: bool = False

    def measured(self, results: Callable[[str], Any]) -> float | None:
        found = results(self.file)
        for key in ("found", *self.keys):
            found = found.get(key) if isinstance(found, dict) else None
        return None if found is None else float(found)

    def share(self, measured: float) -> float:
        """The figure relative to the goal; above 1 is better."""
        return self.goal / measured if self.at_most else measured / self.goal


GOALS = (
    Goal(
        "guided DDIM-25, 32 images, compiled, against the official loop in fp32",
        "engine",
        (COMPILED, "ratio"),
        2.5,
    ),
    Goal(
        "the same without a compiler",
        "engine",
        (EAGER, "ratio"),
        1.8,
    ),
    Goal(
        "the same, compiled, in fp32 on both sides",
        "engine",
        (COMPILED_FP32, "ratio"),
        1.5,
    ),
    Goal(
        "64 mixed jobs through HTTP: rate, of the engine alone on one homogeneous batch",
        "serving",
        (RATE,),
        0.9,
    ),
    Goal(
        "the same jobs against a job-at-a-time RQ worker",
        "serving",
        (SPEED,),
        1.3,
    ),
    Goal(
        "a lone image against the official loop's lone image in fp32",
        "engine",
        (LONE, "ratio"),
        1.0,
    ),
    Goal(
        "first step of a new job beside 64 images, in steps of their batch",
        "engine",
        (FIRST_STEP, "full_batch_steps"),
        1.0,
        at_most=True,
    ),
    Goal("a worker's own time a job", "overhead", ("ms_per_job",), 3.0, " ms", at_most=True),
    Goal(
        "a killed worker's jobs run again after it is up",
        "serving",
        (KILLED,),
        2.0,
        " s",
        at_most=True,
    ),
)


def read(name: str) -> Any:
    path = ROOT / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def line(goal: Goal, measured: float | None) -> str:
    wanted = f"{'at most' if goal.at_most else 'at least'} {goal.goal:g}{goal.unit}"
    if measured is None:
        return f"not measured      ({wanted}): {goal.text}"
    reached = "reached    " if goal.share(measured) >= 1 else "NOT REACHED"
    return f"{reached} {measured:7.3g}{goal.unit} ({wanted}): {goal.text}"


def plot(found: Sequence[tuple[Goal, float]], machine: str) -> str:
    """A bar for each figure relative to its goal, which is the vertical line."""
    left, row, unit, most = 10, 40, 220, 2.5
    parts = [f'<text x="{left}" y="16">1 is the goal; {escape(machine)}</text>']
    for index, (goal, measured) in enumerate(found):
        y, share = 30 + row * index, goal.share(measured)
        colour = REACHED if share >= 1 else MISSED
        parts.append(
            f'<rect x="{left}" y="{y + 16}" width="{unit * min(share, most):.1f}" height="12" fill="{colour}"/>'
        )
        parts.append(f'<text x="{left}" y="{y + 11}">{escape(goal.text)}</text>')
        figure = f"{measured:.3g}{goal.unit} (goal {goal.goal:g}{goal.unit})"
        parts.append(f'<text x="{left + unit * min(share, most) + 6:.1f}" y="{y + 27}" fill="{colour}">{figure}</text>')
    height = 30 + row * len(found)
    parts.append(f'<path d="M{left + unit} 24V{height}" stroke="#888" stroke-dasharray="4"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + unit * most + 150:.0f} {height + 6}" '
        f'font-family="sans-serif" font-size="12" fill="#777">{"".join(parts)}</svg>\n'
    )


def main() -> None:
    measured = [(goal, goal.measured(read)) for goal in GOALS]
    for goal, figure in measured:
        print(line(goal, figure))
    facts = read("engine")
    machine = (
        f"{facts.get('cpu')} ({facts.get('capability')}), {facts.get('threads')} threads, torch {facts.get('torch')}"
    )
    there = [(goal, figure) for goal, figure in measured if figure is not None]
    (ROOT.parent / "docs" / "benchmarks.svg").write_text(plot(there, machine))


if __name__ == "__main__":
    main()
