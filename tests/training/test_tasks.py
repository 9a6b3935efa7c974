import dataclasses
from pathlib import Path

import pytest
import torch

from diffusion.process import Process
from diffusion.schedule import Schedule
from models.judge import JudgeConfig
from tests.models.samples import BASE, CLASSIFIER, UPSAMPLER
from tests.training.samples import data
from training.loop import Task
from training.tasks import ClassifierTask, DiffusionTask, JudgeTask, UpsamplerTask

PROCESS = Process(Schedule.named("cosine", 1000))
NAMES = ["diffusion", "unconditional", "upsampler", "classifier", "judge"]


def tasks() -> dict[str, Task]:
    torch.manual_seed(0)
    unconditional = dataclasses.replace(BASE, num_classes=None)
    return {
        "diffusion": DiffusionTask(BASE, PROCESS, data(), 4, label_dropout=0.5),
        "unconditional": DiffusionTask(unconditional, PROCESS, data(), 4),
        "upsampler": UpsamplerTask(UPSAMPLER, PROCESS, data(image_size=16), 4, small_size=8),
        "classifier": ClassifierTask(CLASSIFIER, PROCESS, data(), 4),
        "judge": JudgeTask(JudgeConfig(8, 3, widths=(32, 32)), data(), 4),
    }


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_a_function_of_the_step_alone(name: str) -> None:
    task = tasks()[name]
    first, figures = task.loss(torch.Generator().manual_seed(1))
    again, _ = task.loss(torch.Generator().manual_seed(1))
    other, _ = task.loss(torch.Generator().manual_seed(2))
    assert first.item() == again.item() == pytest.approx(figures["loss"])
    assert first.item() != other.item()


@pytest.mark.parametrize("name", NAMES)
def test_loss_reaches_the_weights(name: str) -> None:
    task = tasks()[name]
    loss, _ = task.loss(torch.Generator().manual_seed(1))
    loss.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in task.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_preview_writes_one_file(name: str, tmp_path: Path) -> None:
    task = tasks()[name]
    task.model.eval()
    with torch.no_grad():
        task.preview(task.model, tmp_path / "preview.png")
    (written,) = tmp_path.iterdir()
    assert written.stem == "preview"
    assert written.stat().st_size > 0


def test_dropped_labels_train_the_last_row_alone() -> None:
    task = DiffusionTask(BASE, PROCESS, data(), 8, label_dropout=1.0)
    for parameter in task.model.parameters():  # a fresh network's zeros let no gradient through
        torch.nn.init.normal_(parameter, std=0.1)
    loss, _ = task.loss(torch.Generator().manual_seed(1))
    loss.backward()
    gradient = task.model.label_emb.weight.grad
    assert isinstance(gradient, torch.Tensor)
    assert gradient.any(dim=1).tolist() == [False, False, False, True]


def test_upsampler_is_shown_the_area_mean() -> None:
    task = tasks()["upsampler"]
    assert isinstance(task, UpsamplerTask)
    x0 = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(task.reduce(x0), x0.reshape(2, 3, 8, 2, 8, 2).mean(dim=(3, 5)))


@pytest.mark.parametrize("name", ["diffusion", "upsampler", "classifier"])
def test_network_is_trained_on_the_timesteps_that_it_will_see(name: str) -> None:
    """With rescale_timesteps those are thousandths of the schedule: what the sampling tables give it too."""
    process = Process(Schedule.named("cosine", 4000), rescale_timesteps=True)
    seen: list[torch.Tensor] = []
    kinds: dict[str, DiffusionTask | UpsamplerTask | ClassifierTask] = {
        "diffusion": DiffusionTask(BASE, process, data(), 32),
        "upsampler": UpsamplerTask(UPSAMPLER, process, data(image_size=16), 32, small_size=8),
        "classifier": ClassifierTask(CLASSIFIER, process, data(), 32),
    }
    task = kinds[name]
    task.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    task.loss(torch.Generator().manual_seed(1))
    (timesteps,) = seen
    assert set((timesteps * 4).tolist()) <= set(range(4000))
    assert any(each % 1 for each in timesteps.tolist())
    assert float(timesteps.max()) < 1000
