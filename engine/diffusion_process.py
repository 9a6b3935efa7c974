"""The diffusion process that a network was trained on, from its stack."""

from diffusion.flags import select_types
from diffusion.process import DiffusionProcess
from diffusion.schedule import Schedule
from models.stack import DiffusionNetwork

LEARNED_CHANNELS = 6  # of the output: RGB, and a variance value for each


def process_of(loaded: DiffusionNetwork) -> DiffusionProcess:
    """The diffusion process of the official flags; six output channels mean a learned variance."""
    process = loaded.process
    mean_type, variance_type, _ = select_types(
        learn_sigma=loaded.network.config.out_channels == LEARNED_CHANNELS,
        sigma_small=process.sigma_small,
        predict_xstart=process.predict_xstart,
    )
    schedule = Schedule.named(process.schedule, process.num_timesteps)
    return DiffusionProcess(schedule, mean_type, variance_type, process.rescale_timesteps, process.grey)
