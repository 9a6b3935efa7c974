"""A process of grey images predicts and generates grey ones, and nothing else changes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffusion.grey import channel_mean
from diffusion.losses import LossType, training_losses
from diffusion.process import DiffusionProcess, MeanType, VarianceType
from diffusion.schedule import Schedule
from diffusion.solvers import dpmpp_2m_table, heun_table
from diffusion.tables import SamplerTable, ddim_table, ddpm_table, encoding_table, take_step

SHAPE = (3, 4, 5)
COLOUR = DiffusionProcess(Schedule.named("cosine", 20))
GREY = replace(COLOUR, grey=True)
TABLES: dict[str, Callable[[DiffusionProcess], SamplerTable]] = {
    "ddpm": ddpm_table,
    "ddim": lambda process: ddim_table(process, 0.0),
    "ddim, eta 1": lambda process: ddim_table(process, 1.0),
    "ddim, dynamic": lambda process: ddim_table(process, 0.0, thresholding="dynamic"),
    "dpmpp_2m": dpmpp_2m_table,
    "heun": heun_table,
}


def draw(generator: torch.Generator, channels: int = 3, count: int = 1) -> Tensor:
    return torch.randn(count, channels, *SHAPE[1:], generator=generator)


def run(table: SamplerTable, *, guided: bool) -> Tensor:
    """The image that random outputs and gradients lead to, all of which have colours."""
    generator = torch.Generator().manual_seed(0)
    x, memory = draw(generator), torch.zeros(1, *SHAPE)
    for row in range(len(table)):
        guidance = draw(generator) if guided else None
        step = take_step(table.rows[row : row + 1], x, draw(generator, 6), guidance, draw(generator), memory)
        x, memory = step.x_prev, step.memory
    return x


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("sampler", TABLES)
def test_every_sampler_ends_in_a_grey_image(sampler: str, guided: bool) -> None:
    image = run(TABLES[sampler](GREY), guided=guided)
    assert torch.equal(image, image[:, :1].expand_as(image))
    of_colour = run(TABLES[sampler](COLOUR), guided=guided)
    assert float((of_colour - of_colour[:, :1]).abs().max()) > 0.1


@pytest.mark.parametrize("mean_type", [MeanType.EPSILON, MeanType.START_X])
def test_step_of_a_raw_output_is_that_of_the_output_limited_to_grey(mean_type: MeanType) -> None:
    """The engine averages in the step, the training before its loss: both read an output alike."""
    process, generator = replace(GREY, mean_type=mean_type), torch.Generator().manual_seed(1)
    x, output, noise = draw(generator), draw(generator, 6), draw(generator)
    for table in (ddpm_table(process), ddim_table(process, 0.5), encoding_table(process)):
        for row in range(len(table)):
            rows, t = table.rows[row : row + 1], table.original[row : row + 1]
            raw, limited = (
                take_step(rows, x, each, None, noise).x_prev for each in (output, process.as_grey(output, x, t))
            )
            torch.testing.assert_close(limited, raw, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mean_type", [MeanType.EPSILON, MeanType.START_X])
def test_limiting_to_grey_never_adds_error(mean_type: MeanType) -> None:
    process, generator = replace(GREY, mean_type=mean_type), torch.Generator().manual_seed(2)
    count = process.schedule.num_timesteps
    x0, noise, t = (
        channel_mean(draw(generator, count=count)).clamp(-1, 1),
        draw(generator, count=count),
        torch.arange(count),
    )
    x_t = process.q_sample(x0, t, noise)
    exact = noise if mean_type is MeanType.EPSILON else x0
    output = torch.cat([exact + 0.3 * draw(generator, count=count), draw(generator, count=count)], dim=1)
    raw, limited = (
        training_losses(process, LossType.MSE, each, x0, x_t, t, noise).mse
        for each in (output, process.as_grey(output, x_t, t))
    )
    assert raw is not None
    assert limited is not None
    assert bool((limited < raw).all())
    torch.testing.assert_close(limited.mean(), raw.mean() / 3, rtol=0.1, atol=0)  # what is left of independent errors


def test_colour_image_is_the_same_beside_grey_ones() -> None:
    generator = torch.Generator().manual_seed(3)
    x, output, guidance, noise = (draw(generator, channels, 2) for channels in (3, 6, 3, 3))
    rows = torch.cat([ddpm_table(COLOUR).rows[5:6], ddpm_table(GREY).rows[5:6]])
    both = take_step(rows, x, output, guidance, noise)
    for place in (0, 1):
        part = slice(place, place + 1)
        alone = take_step(rows[part], x[part], output[part], guidance[part], noise[part])
        for together, single in zip(both, alone, strict=True):
            assert torch.equal(together[part], single)


def test_fixed_variance_is_left_alone() -> None:
    process = replace(GREY, variance_type=VarianceType.FIXED_SMALL)
    generator = torch.Generator().manual_seed(4)
    x, output = draw(generator), draw(generator)
    assert process.as_grey(output, x, torch.tensor([3])).shape == x.shape
