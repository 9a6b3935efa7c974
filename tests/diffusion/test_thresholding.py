import pytest
import torch
from torch import Tensor

from diffusion.process import DiffusionProcess
from diffusion.schedule import Schedule
from diffusion.solvers import dpmpp_2m_table, heun_table
from diffusion.tables import DYNAMIC_QUANTILE, SamplerTable, ddim_table, ddpm_table, take_step, threshold

PROCESS = DiffusionProcess(Schedule.named("cosine", 1000).respaced([0, 250, 500, 750]))


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None, None, None]


def test_dynamic_bound_is_the_quantile_of_the_image_itself() -> None:
    x = torch.linspace(-2, 4, 3 * 20 * 20).reshape(1, 3, 20, 20)
    bounded = threshold(x, column(torch.inf), column(0.9))
    s = x.abs().flatten().sort().values[1080 - 1]  # 90 % of 1200 values are no larger
    assert torch.equal(bounded, x.clamp(-s, s) / s)
    assert bounded.abs().max() == 1


def test_prediction_within_bounds_is_left_alone() -> None:
    x = torch.linspace(-0.9, 0.9, 12).reshape(1, 3, 2, 2)
    assert torch.equal(threshold(x, column(torch.inf), column(DYNAMIC_QUANTILE)), x)


def test_each_row_of_a_batch_has_its_own_rule() -> None:
    x = (3 * torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))).contiguous()
    clipped, dynamic, free = threshold(x, column(1, torch.inf, torch.inf), column(0, 0.5, 0))
    assert torch.equal(clipped, x[0].clamp(-1, 1))
    assert torch.equal(free, x[2])
    s = x[1].abs().flatten().sort().values[23]
    assert torch.equal(dynamic, x[1].clamp(-s, s) / s)


@pytest.mark.parametrize(
    "table",
    [
        ddim_table(PROCESS, 0.0, thresholding="dynamic"),
        dpmpp_2m_table(PROCESS, thresholding="dynamic"),
        heun_table(PROCESS, thresholding="dynamic"),
    ],
)
def test_dynamic_bound_limits_the_guided_prediction(table: SamplerTable) -> None:
    """The scale here would move the clipped prediction far out of the image's range."""
    generator = torch.Generator().manual_seed(1)
    x, out, v, gradient, noise = torch.randn(5, len(table), 3, 4, 4, generator=generator)
    _, pred_x0, _ = take_step(table.rows, x, torch.cat([out, v], dim=1), 50 * gradient, noise)
    assert pred_x0.abs().amax(dim=(1, 2, 3)).tolist() == [1] * len(table)


def test_ancestral_guidance_moves_the_mean_and_not_the_bounded_prediction() -> None:
    clip, dynamic = (ddpm_table(PROCESS, thresholding=each) for each in ("clip", "dynamic"))
    x, out, v, gradient, noise = torch.randn(5, 4, 3, 4, 4, generator=torch.Generator().manual_seed(2)) / 10
    output = torch.cat([out, v], dim=1)
    shifts = []
    for table in (clip, dynamic):
        plain, guided = (take_step(table.rows[-1:].expand(4, -1), x, output, g, noise) for g in (None, gradient))
        assert torch.equal(plain.pred_x0, guided.pred_x0)
        shifts.append(guided.x_prev - plain.x_prev)
    torch.testing.assert_close(*shifts, rtol=0, atol=1e-6)
