"""From the host's memory to a device's."""

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device | str) -> Tensor:
    """The host's values on a device; a GPU copies them while the host goes on.

    For a GPU they are copied to pinned memory first: out of memory that may be paged out a copy is waited for, whatever
    it asks. torch keeps the pinned copy until the GPU has read it.
    """
    if torch.device(device).type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
