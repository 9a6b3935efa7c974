"""The remedies in a worker's errors of loading."""

from pathlib import Path

import pytest
import torch

from engine.loading import MissingFileError, ShortageError, UnknownPipelineError
from models.checkpoints.network_file import WeightsError
from models.memory import Shortage
from worker.error_texts import error_text

WEIGHTS, CPU = Path("weights"), torch.device("cpu")
GIB = 2**30


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            UnknownPipelineError("huge", WEIGHTS, ["demo", "tiny"]),
            "ADM_PIPELINES: no stack of weights (ADM_WEIGHTS) has a pipeline 'huge'; there are demo, tiny",
        ),
        (
            UnknownPipelineError("demo", Path("/nowhere"), ["adm-64"]),
            "ADM_WEIGHTS: /nowhere is not a folder; name the folder of the stacks",
        ),
        (
            MissingFileError("adm-64", WEIGHTS / "official" / "64x64_diffusion.pt"),
            (
                "ADM_PIPELINES: 'adm-64' needs 64x64_diffusion.pt, which is not in weights/official (ADM_WEIGHTS); "
                "adm models fetch 64x64_diffusion downloads it"
            ),
        ),
        (
            ShortageError(["a", "b"], CPU, Shortage(3 * GIB, 2 * GIB, 8, 5, {})),
            "ADM_PIPELINES: a, b need 3.0 GiB at ADM_MAX_ROWS=8, 2.0 GiB are free; ADM_MAX_ROWS=5 would fit on cpu",
        ),
        (
            ShortageError(["a", "b"], CPU, Shortage(3 * GIB, 2 * GIB, 8, 0, {"a": 2})),
            (
                "ADM_PIPELINES: a, b need 3.0 GiB at ADM_MAX_ROWS=8, 2.0 GiB are free; "
                "one alone would fit: a with ADM_MAX_ROWS=2 on cpu"
            ),
        ),
        (
            ShortageError(["a"], CPU, Shortage(3 * GIB, 0, 8, 0, {})),
            "ADM_PIPELINES: a needs 3.0 GiB at ADM_MAX_ROWS=8, 0.0 GiB are free; none of them fits alone on cpu",
        ),
        (WeightsError("base.safetensors", "is cut off"), "base.safetensors: is cut off"),
    ],
)
def test_error_of_loading_names_the_setting_and_what_helps(error: WeightsError, line: str) -> None:
    assert error_text(error) == line


def test_error_names_the_option_that_named_the_pipeline() -> None:
    assert error_text(UnknownPipelineError("huge", WEIGHTS, ["demo"]), "--pipeline").startswith("--pipeline: no stack")


def test_line_names_no_setting_where_a_command_has_none() -> None:
    assert error_text(UnknownPipelineError("huge", WEIGHTS, ["demo"]), "").startswith(f"no stack of {WEIGHTS}")
