"""Networks and their gradients agree with the reference cases on the device that will compute them."""

from pathlib import Path

import pytest
import torch

from models.networks.precision import DTYPES
from tests.golden_runner.case import Case, compare
from tests.golden_runner.runner import KINDS, find_cases
from vocabulary.precisions import Precision

GOLDEN = Path(__file__).parents[1] / "golden"
NETWORKS = ("components", "unet", "classifier")
CASES = [path for kind in NETWORKS for path in find_cases(GOLDEN / kind)]
HALVES: tuple[Precision, ...] = ("bf16", "fp16")
FROM_FP32 = {"bf16": 0.1, "fp16": 0.03}  # root mean square of a difference, of the answer's: docs/precision.md


def case_on(path: Path, device: torch.device) -> Case:
    case = Case.load(path)
    case.inputs = {name: each.to(device) for name, each in case.inputs.items()}
    return case


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_network_meets_its_reference_case(device: torch.device, path: Path) -> None:
    case = case_on(path, device)
    with torch.device(device):
        got = KINDS[path.parent.name](case)
    assert compare(case, {name: each.cpu() for name, each in got.items()}) == []


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("path", find_cases(GOLDEN / "unet")[:2], ids=lambda path: path.stem)
def test_half_precision_stays_near_the_reference(device: torch.device, path: Path, precision: Precision) -> None:
    case = case_on(path, device)
    with torch.device(device), torch.autocast(device.type, DTYPES[precision]):
        got = KINDS["unet"](case)["out"].float().cpu()
    want = case.expected["out"]
    assert float((got.detach() - want).norm() / want.norm()) < FROM_FP32[precision]
