"""A run may begin at the files of the official training scripts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoints.file_form import WeightsError
from tests.training.samples import assert_same, config, finish, start
from training.loop import Run
from training.official_files import Beginning, begin_at

STEPS = 3


@pytest.fixture(scope="module")
def trained() -> Run:
    """A run that was trained elsewhere."""
    run = start(config(optimiser={"steps": STEPS}, averages={"power": []}))
    finish(run)
    return run


def save(run: Run, folder: Path, optimiser: dict[str, Any]) -> Beginning:
    torch.save({key: each.detach() for key, each in run.parameters.items()}, folder / "model000003.pt")
    torch.save(dict(run.averages.values["0.9"]), folder / "ema_0.9_000003.pt")
    torch.save(optimiser, folder / "opt000003.pt")
    return Beginning(folder / "model000003.pt", (folder / "ema_0.9_000003.pt",), folder / "opt000003.pt")


def flattened(run: Run) -> dict[str, Any]:
    """The optimiser's state in the form of the official float16 training: two parameters."""
    state, parameters = run.optimiser.state_dict(), list(run.parameters.values())
    groups = [[i for i, each in enumerate(parameters) if (each.ndim > 1) == matrices] for matrices in (False, True)]
    joined = {
        index: {
            "step": STEPS,
            **{
                name: torch.cat([state["state"][i][name].flatten() for i in group]).view(
                    (-1,) if index == 0 else (1, -1)
                )
                for name in ("exp_avg", "exp_avg_sq")
            },
        }
        for index, group in enumerate(groups)
    }
    return {"state": joined, "param_groups": [{**state["param_groups"][0], "params": [0, 1]}]}


@pytest.mark.parametrize("form", ["fp32", "fp16"])
def test_run_continues_from_official_files_as_from_its_own_state(trained: Run, tmp_path: Path, form: str) -> None:
    optimiser = trained.optimiser.state_dict() if form == "fp32" else flattened(trained)
    begun = start(config(seed=9, averages={"power": []}))
    begin_at(begun, save(trained, tmp_path, optimiser))
    for one, other in zip(
        begun.optimiser.state_dict()["state"].values(), trained.optimiser.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(one[name], other[name]) for name in ("step", "exp_avg", "exp_avg_sq"))
    begun.step = trained.step
    assert_same(begun, trained)


def test_files_of_another_network_are_refused_by_name(trained: Run, tmp_path: Path) -> None:
    files = save(trained, tmp_path, {"state": {0: {}}})
    run = start(config(averages={"power": []}))
    with pytest.raises(WeightsError, match=r"opt000003.pt: is no state of AdamW for this network"):
        begin_at(run, files)
    with pytest.raises(WeightsError, match="weights that they belong to"):
        begin_at(run, Beginning(optimiser=files.optimiser))
    wider = start(config(network={"model_channels": 64}, averages={"power": []}))
    with pytest.raises(WeightsError, match=r"model000003.pt"):
        begin_at(wider, files)
