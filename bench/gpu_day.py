"""Runs all checks of a GPU, in less than ten minutes: make gpu-day OUT=folder.

Runs the tests of tests/device, the neighbours' comparison in each precision, and bench.device at 64 and 256 pixels.
Each part has a time limit; its output and measurements until then are kept. Writes a log and a JSON file of each part
to the folder, and summary.txt. Exits 1 if a part failed. --device cpu is for a test of this script.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from vocabulary.precisions import PRECISIONS

ENDED = 124  # status of a part after its time limit, like timeout(1)'s


@dataclass(frozen=True)
class Part:
    """A program, its time limit in seconds, and variables of its environment."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, folder: Path) -> str:
        """Run it; return its line of the summary."""
        log, started = folder / f"{self.name}.log", time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *self.arguments],
                env=os.environ | self.variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                status = process.wait(self.seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                status = ENDED
        result = {0: "passed", ENDED: f"ended after {self.seconds:.0f} s"}.get(status, f"failed with status {status}")
        lines = log.read_text(errors="replace").splitlines()
        return f"{self.name}: {result}, {time.monotonic() - started:.0f} s: {lines[-1][:200] if lines else 'no output'}"


def parts(device: str, folder: Path, seconds: float) -> list[Part]:
    """The parts for a device; seconds: time limit of all parts together."""
    options = "addopts=--import-mode=importlib --strict-markers"  # no options of plugins, which may be missing
    pytest = ("pytest", "-q", "-W", "default", "-o", options, "--confcutdir=tests/device", "tests/device")
    tests = Part("tests", pytest, 0.3 * seconds, {"TEST_DEVICE": device})
    compared = [
        Part(
            f"neighbours-{precision}",
            (
                "bench.neighbours",
                *("--device", device, "--precision", precision, "--max-rows", "32"),
                *("--seconds", str(0.05 * seconds)),
            ),
            0.12 * seconds,
        )
        for precision in PRECISIONS
    ]
    stages = ("256x256_diffusion", "64x64_diffusion") if device != "cpu" else ()
    measured = ("bench.device", "--device", device, "--rows", "1", "32", "--out", str(folder / "device.json"))
    return [tests, *compared, Part("bench", (*measured, "--stages", *stages), 0.34 * seconds)]


def main() -> None:
    """Run the parts one after the other, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=570.0)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    summary = asked.out / "summary.txt"
    lines: list[str] = []
    for part in parts(asked.device, asked.out, asked.seconds):
        lines.append(part.run(asked.out))
        print(lines[-1], flush=True)
        summary.write_text("\n".join(lines) + "\n")
        found = (asked.out / f"{part.name}.log").read_text(errors="replace").splitlines()[-1:]
        if found and found[0].startswith("{"):
            (asked.out / f"{part.name}.json").write_text(found[0] + "\n")
    sys.exit(not all("passed" in line for line in lines))


if __name__ == "__main__":
    main()
