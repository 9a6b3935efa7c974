"""As long as engine.rounding.ROUNDING is unchanged, the outputs recorded under it are reproduced."""

import json
from pathlib import Path

import pytest
import torch

from engine.rounding import ROUNDING
from models.networks import native_norm
from tests.engine.record_rounding import RECORDS, digest, images, torchs_own
from vocabulary.precisions import PRECISIONS, Precision


def records() -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(RECORDS.read_text())
    return found


def test_records_are_of_this_version() -> None:
    assert {each["rounding"] for each in records()} == {ROUNDING}


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_images_are_those_recorded(precision: Precision, stack_folder: Path) -> None:
    """Bit for bit where torch's own operations give the recorded bits, and only if the norms could be compiled.

    Elsewhere, two runs are compared.
    """
    ours = images(stack_folder, precision)
    known = {each["torchs_own"]: each["outputs"] for each in records()}.get(torchs_own())
    if isinstance(known, dict) and native_norm.library() is not None:
        assert digest(ours) == known[precision], "raise engine.rounding.ROUNDING, and record the outputs again"
    else:
        assert all(map(torch.equal, ours, images(stack_folder, precision)))
