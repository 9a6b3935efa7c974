"""Every kind of network trains, and a step is a function of the batch and not of how it is divided."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.training.samples import config, finish, images, start
from training.samples import Samples, batches

KINDS: dict[str, dict[str, Any]] = {
    "diffusion": {},
    "unconditional": {"data": {"labelled": False}, "objective": {"label_dropout": 0}},
    "upsampler": {
        "kind": "upsampler",
        "network": {"small_size": 4},
        "objective": {"label_dropout": 0, "low_res_noise": 0.3},
    },
    "classifier": {"kind": "classifier", "objective": {"label_dropout": 0}},
    "clean classifier": {"kind": "classifier", "objective": {"label_dropout": 0, "noised": False}},
    "judge": {"kind": "judge", "network": {"image_size": 16}, "objective": {"label_dropout": 0}},
    "fixed variance": {"process": {"learn_sigma": False}, "objective": {"loss": "mse", "weighting": "p2"}},
    "bound": {"objective": {"loss": "rescaled_kl"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_do_not_depend_on_microbatches(kind: str) -> None:
    changes = KINDS[kind]
    size = changes.get("network", {}).get("image_size", 8)
    losses = []
    for microbatch in (None, 1, 3):
        optimiser = {"steps": 3, "microbatch": microbatch}
        run = start(config(**{**changes, "optimiser": optimiser}), data=images(image_size=size))
        losses.append([tick.loss for tick in finish(run)])
    for each in losses[1:]:
        assert each == pytest.approx(losses[0], abs=1e-6, rel=1e-5)


def test_checkpointed_blocks_give_the_same_weights() -> None:
    plain, checkpointed = (
        start(config(network={"dropout": 0.2}, compute={"checkpointing": each})) for each in (False, True)
    )
    finish(plain)
    finish(checkpointed)
    for name, value in plain.parameters.items():
        assert torch.equal(value, checkpointed.parameters[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_training_learns(kind: str) -> None:
    given = config(
        **{**KINDS[kind], "optimiser": {"steps": 60, "batch_size": 8}, "saving": {"log_steps": 20}},
    )
    lines = [tick.line for tick in finish(start(given)) if tick.line]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]


@pytest.mark.parametrize("kind", ["diffusion", "upsampler", "classifier"])
def test_network_is_trained_on_the_timesteps_that_it_will_see(kind: str) -> None:
    """With rescale_timesteps the network sees t * 1000 / num_timesteps, in training as in sampling."""
    process = {"process": {"num_timesteps": 4000, "rescale_timesteps": True}}
    run, seen = start(config(**KINDS[kind], **process, optimiser={"steps": 4, "batch_size": 8})), list[torch.Tensor]()
    run.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    finish(run)
    timesteps = torch.cat(seen)
    assert set((timesteps * 4).tolist()) <= set(range(4000))
    assert any(each % 1 for each in timesteps.tolist())
    assert float(timesteps.max()) < 1000


def test_grey_network_is_trained_on_the_mean_of_the_channels_and_no_tint_of_it_costs_anything() -> None:
    """Each image is averaged over its channels; what the network predicts beside the channels' mean has no gradient."""
    tinted = images()
    mean = tinted.images.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    given = config(process={"grey": True}, data={"flip": False})
    run, of_means = start(given, data=tinted), start(given, data=replace(tinted, images=mean))
    for one, other in zip(finish(run), finish(of_means), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.02)  # 8 bits round the means
    run.network.zero_grad()
    # the gradient of one batch, which a step would have used and dropped
    run._compute(next(batches(Samples(tinted, given.data, 0), 4, 0, 0, 1)), stop=False)
    gradient = run.parameters["out.2.bias"].grad
    assert gradient is not None
    torch.testing.assert_close(gradient[:3], gradient[:1].expand(3))  # the same in every channel: no tint is pushed
