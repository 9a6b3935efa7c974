"""Reads the open flags that a network file and the stack.json beside it state."""

from dataclasses import replace
from pathlib import Path

from models.checkpoints.inspection import RGB_CHANNELS
from models.checkpoints.network_file import NetworkConfig, read_config, read_process
from models.checkpoints.open_flags import Answers
from models.checkpoints.tensor_file import WeightsError, read_metadata
from models.networks.config import ClassifierConfig, DiffusionConfig, UNetConfig
from models.stack_plan import MANIFEST, read_stack


def stated_answers(path: Path) -> dict[str, Answers]:
    """The answers of each source, by its name, the file itself first; empty for a file that has only tensors.

    Raises: WeightsError for a file whose own configuration cannot be read.
    """
    if path.suffix != ".safetensors" or "kind" not in read_metadata(path):
        return {}
    config, process = read_config(path), read_process(path)
    answers = {"in the file": answers_of(config, process)}
    if process is None and (named := _process_in_stack(path)) is not None:
        answers[f"named by {MANIFEST}"] = answers_of(config, named)
    return answers


def answers_of(config: NetworkConfig, process: DiffusionConfig | None) -> Answers:
    """The open flags of a known network, and of its training if known; empty for a network that is not ADM's."""
    if not isinstance(config, UNetConfig | ClassifierConfig):
        return Answers()
    by_channels = config.num_head_channels != -1
    answers = Answers(
        use_new_attention_order=config.use_new_attention_order,
        num_heads=None if by_channels else config.num_heads,
        num_head_channels=config.num_head_channels if by_channels else None,
        num_heads_upsample=config.num_heads_upsample if isinstance(config, UNetConfig) and not by_channels else None,
        image_size=config.image_size,
        num_res_blocks=config.num_res_blocks,
    )
    if process is None:
        return answers
    return replace(
        answers,
        noise_schedule=process.schedule,
        diffusion_steps=process.num_timesteps,
        rescale_timesteps=process.rescale_timesteps,
        predict_xstart=process.predict_xstart,
        sigma_small=process.sigma_small if config.out_channels == RGB_CHANNELS else None,
    )


def _process_in_stack(path: Path) -> DiffusionConfig | None:
    try:
        files = read_stack(path.parent).files
    except WeightsError:  # no stack, or one that is unusable because of another file or entry
        return None
    return next((file.process for file in files if file.path == path), None)
