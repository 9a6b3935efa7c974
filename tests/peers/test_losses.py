"""Training losses and bits per dimension beside the official code's."""

import random

import pytest
import torch

from diffusion.losses import training_losses
from tests.diffusion.bits_per_dim import bits_per_dim
from tests.peers.processes import SHAPE, Network, both, draw_flags, draw_respacing

CASES = range(20)


@pytest.mark.parametrize("case", CASES)
def test_training_loss_is_the_official_codes(case: int, draw: random.Random) -> None:
    flags = draw_flags(draw)
    process, loss_type, official = both(flags)
    network = Network(draw, flags["learn_sigma"])
    x0, noise = torch.rand(SHAPE) * 2 - 1, torch.randn(SHAPE)
    t = torch.tensor([0, draw.randrange(flags["steps"])])
    want = official.training_losses(network, x0, t, noise=noise)
    x_t = process.q_sample(x0, t, noise)
    output = network(x_t, process.network_timesteps[t])
    got = training_losses(process, loss_type, output, x0, x_t, t, noise).named()
    assert want.keys() <= got.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", range(5))
def test_bits_per_dimension_are_the_official_codes(case: int, draw: random.Random) -> None:
    flags = draw_flags(draw) | {"steps": 1000, "use_kl": False}
    process, _, official = both(flags, draw_respacing(draw, 1000))
    network, x0 = Network(draw, flags["learn_sigma"]), torch.rand(SHAPE) * 2 - 1
    torch.manual_seed(case)
    want = official.calc_bpd_loop(network, x0)
    torch.manual_seed(case)
    got = bits_per_dim(process, network, x0, lambda _: torch.randn_like(x0))
    for ours, theirs in ((got.total, "total_bpd"), (got.prior, "prior_bpd"), (got.vb, "vb"), (got.eps_mse, "mse")):
        torch.testing.assert_close(ours, want[theirs], rtol=1e-3, atol=1e-4)
