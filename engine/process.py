"""The process that a network was trained on, as its stack says."""

from diffusion.flags import select_types
from diffusion.process import Process
from diffusion.schedule import Schedule
from models.stack import DiffusionNetwork

LEARNED_CHANNELS = 6  # of the output: RGB, and the variance values of each


def process_of(held: DiffusionNetwork) -> Process:
    """What the official code makes of the flags: six output channels are a learned variance."""
    process = held.process
    mean_type, variance_type, _ = select_types(
        learn_sigma=held.network.config.out_channels == LEARNED_CHANNELS,
        sigma_small=process.sigma_small,
        predict_xstart=process.predict_xstart,
    )
    schedule = Schedule.named(process.schedule, process.num_timesteps)
    return Process(schedule, mean_type, variance_type, process.rescale_timesteps)
