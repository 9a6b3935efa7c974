"""Measures the deviation of bf16 and fp16 from float32, by component, on the reference cases.

    python -m bench.precision [tests/golden]

Every network case is computed under autocast (weights float32, convolutions and matrix products in half precision,
norms, softmax and sums in float32) and compared with its float32 result. Writes bench/results/precision.json.
"""

import json
import platform
import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from tests.golden_runner.case import Case
from tests.golden_runner.runner import KINDS, find_cases

FOLDERS = ("components", "unet", "classifier")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
RESULT = Path(__file__).parent / "results" / "precision.json"


def deviation(got: Tensor, want: Tensor) -> dict[str, float]:
    """Root mean square and largest difference, both relative to the root mean square of the result."""
    size = want.double().square().mean().sqrt().clamp(min=1e-30)
    difference = (got.detach().double() - want.double()).abs() / size
    return {"rms": float(difference.square().mean().sqrt()), "max": float(difference.max())}


def measure(folder: Path) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """kind/case -> output -> precision -> deviation."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for kind in FOLDERS:
        for path in find_cases(folder / kind):
            outputs: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
            for name, dtype in DTYPES.items():
                case = Case.load(path)
                with torch.autocast("cpu", dtype):
                    got = KINDS[kind](case)
                for output, value in got.items():
                    if value.is_floating_point():
                        outputs[output][name] = deviation(value, case.expected[output])
            found[f"{kind}/{path.stem}"] = dict(outputs)
    return found


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden")
    report = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "deviations": measure(folder),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{'case':45} {'output':16} {'bf16 rms':>10} {'max':>9} {'fp16 rms':>10} {'max':>9}")
    for case, outputs in report["deviations"].items():  # type: ignore[attr-defined]  # a dict, as measured above
        for output, by_precision in outputs.items():
            figures = "".join(f" {by_precision[p]['rms']:10.2e} {by_precision[p]['max']:9.2e}" for p in DTYPES)
            print(f"{case:45} {output:16}{figures}")


if __name__ == "__main__":
    main()
