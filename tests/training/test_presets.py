"""The paper's runs as presets: networks and optimisers of appendix I (Dhariwal & Nichol 2021, arXiv:2105.05233)."""

import pytest
import torch

from models.checkpoints.network_file import build_network
from models.networks.config import ClassifierConfig, UNetConfig
from training.config import read_config
from training.presets import PRESET_NAMES, preset_fields, read_fields

# parameters in millions, schedule, channels, blocks, multiples, dropout, batch, thousands of iterations, learning rate
DIFFUSION = {  # Tables 11 and 13
    "official-lsun-cat": (552, "linear", 256, 2, (1, 1, 2, 2, 4, 4), 0.1, 256, 200, 1e-4),
    "official-lsun-horse": (552, "linear", 256, 2, (1, 1, 2, 2, 4, 4), 0.1, 256, 250, 1e-4),
    "official-lsun-bedroom": (552, "linear", 256, 2, (1, 1, 2, 2, 4, 4), 0.1, 256, 500, 1e-4),
    "official-64": (296, "cosine", 192, 3, (1, 2, 3, 4), 0.1, 2048, 540, 3e-4),
    "official-128": (422, "linear", 256, 2, (1, 1, 2, 3, 4), 0.0, 256, 4360, 1e-4),
    "official-256": (554, "linear", 256, 2, (1, 1, 2, 2, 4, 4), 0.0, 256, 1980, 1e-4),
    "official-512": (559, "linear", 256, 2, (0.5, 1, 1, 2, 2, 4, 4), 0.0, 256, 1940, 1e-4),
    "official-64-256-upsampler": (312, "linear", 192, 2, (1, 1, 2, 2, 4, 4), 0.0, 256, 500, 1e-4),
    "official-128-512-upsampler": (309, "linear", 192, 2, (1, 1, 2, 2, 4, 4), 0.0, 256, 1050, 1e-4),
}
# parameters in millions, blocks, multiples, weight decay, batch, thousands of iterations, learning rate
CLASSIFIERS = {  # Table 12
    "official-64-classifier": (65, 4, (1, 2, 3, 4), 0.2, 1024, 300, 6e-4),
    "official-128-classifier": (43, 2, (1, 1, 2, 3, 4), 0.05, 256, 300, 3e-4),
    "official-256-classifier": (54, 2, (1, 1, 2, 2, 4, 4), 0.05, 256, 500, 3e-4),
    "official-512-classifier": (54, 2, (0.5, 1, 1, 2, 2, 4, 4), 0.05, 256, 500, 3e-4),
}


def millions(config: UNetConfig | ClassifierConfig) -> int:
    with torch.device("meta"):
        return round(sum(each.numel() for each in build_network(config).parameters()) / 1e6)


@pytest.mark.parametrize("name", DIFFUSION)
def test_diffusion_preset_is_the_papers(name: str) -> None:
    size, schedule, channels, depth, multiples, dropout, batch, thousands, rate = DIFFUSION[name]
    run = read_config(read_fields({"data": {"path": "images"}}, name, {}))
    network, given = run.network_config(1000), run.optimiser
    assert isinstance(network, UNetConfig)
    found = network.model_channels, network.num_res_blocks, network.channel_mult, network.dropout
    assert found == (channels, depth, multiples, dropout)
    assert network.resblock_updown
    assert abs(millions(network) - size) <= 1  # the paper's 552M of LSUN are 552.8M
    assert run.process.schedule == schedule
    assert (given.batch_size, given.steps, given.learning_rate) == (batch, thousands * 1000, rate)
    assert (given.betas, run.averages.rates, run.compute.precision) == ((0.9, 0.999), (0.9999,), "fp16")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier_preset_is_the_papers(name: str) -> None:
    size, depth, multiples, decay, batch, thousands, rate = CLASSIFIERS[name]
    run = read_config(read_fields({"data": {"path": "images"}}, name, {}))
    network, given = run.network_config(1000), run.optimiser
    assert isinstance(network, ClassifierConfig)
    assert (network.model_channels, network.num_res_blocks, network.channel_mult) == (128, depth, multiples)
    assert network.pool == "attention"
    assert millions(network) == size
    assert given.weight_decay == decay
    assert (given.batch_size, given.steps, given.learning_rate) == (batch, thousands * 1000, rate)


def test_every_run_of_the_paper_is_compared() -> None:
    assert {each for each in PRESET_NAMES if each.startswith("official-")} == DIFFUSION.keys() | CLASSIFIERS.keys()
    assert preset_fields("official-64")["optimiser"]["microbatch"] < 2048  # the batch of all processes together
