"""DDIM's encoding undoes DDIM's sampling in the limit, on a mixture whose score is exact."""

from itertools import pairwise

import torch
from torch import Tensor

from diffusion.process import DiffusionProcess, VarianceType
from diffusion.tables import SamplerTable, ddim_table, encoding_table, take_step
from tests.diffusion.mixture import Mixture, levels_in_log_snr, schedule_of

MIXTURE = Mixture(
    weights=torch.tensor([0.3, 0.7], dtype=torch.float64),
    means=torch.tensor([[-0.6, 0.2], [0.5, -0.3]], dtype=torch.float64),
    covariances=torch.tensor([[[0.04, 0.01], [0.01, 0.02]], [[0.03, 0.0], [0.0, 0.05]]], dtype=torch.float64),
)


def run(table: SamplerTable, rows: int, alpha_bar: Tensor, x: Tensor) -> Tensor:
    for row in range(rows):
        level = alpha_bar[int(table.timesteps[row])].item()
        eps = -((1 - level) ** 0.5) * MIXTURE.score(x, level)
        x_t, output = x[:, :, None, None], eps[:, :, None, None]
        moved, _, _ = take_step(table.rows[row].expand(len(x), -1), x_t, output, None, torch.zeros_like(x_t))
        x = moved[:, :, 0, 0]
    return x


def error(num_steps: int) -> float:
    """The error of an encoding and its decoding, without the last step to alpha_bar 1."""
    alpha_bar = levels_in_log_snr(num_steps)
    process = DiffusionProcess(schedule_of(alpha_bar), variance_type=VarianceType.FIXED_SMALL)
    encode, decode = encoding_table(process), ddim_table(process, 0.0, thresholding="none")
    x = MIXTURE.draw(50, seed=0)
    back = run(decode, num_steps - 1, alpha_bar, run(encode, num_steps - 1, alpha_bar, x))
    return float((back - x).abs().mean())


def test_error_of_encoding_and_back_falls_in_proportion_to_the_steps() -> None:
    errors = [error(num_steps) for num_steps in (25, 50, 100, 200)]
    for fewer, more in pairwise(errors):
        assert 0.35 < more / fewer < 0.65
    assert errors[-1] < 0.02


def test_encoding_is_noise() -> None:
    """The encodings have the mean and spread of the noise from which the model draws samples."""
    alpha_bar = levels_in_log_snr(100)
    process = DiffusionProcess(schedule_of(alpha_bar), variance_type=VarianceType.FIXED_SMALL)
    latent = run(encoding_table(process), 99, alpha_bar, MIXTURE.draw(4000, seed=1))
    assert float(latent.mean(dim=0).abs().max()) < 0.06
    assert float((torch.cov(latent.T) - torch.eye(2)).abs().max()) < 0.1
