"""Between the host's memory and a device's, while the host goes on."""

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device | str) -> Tensor:
    """The host's values on a device, where they may be already.

    For a GPU they are copied to pinned memory first: out of memory that may be paged out a copy is waited for, whatever
    it asks. torch keeps the pinned copy until the GPU has read it.
    """
    if torch.device(device).type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def download(values: Tensor) -> Tensor:
    """A device's values on the host, to be read once the device has come to this copy: in pinned memory, from a GPU."""
    return values.to("cpu", non_blocking=True)
