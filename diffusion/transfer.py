"""Copies between the host's memory and a device's; the host does not wait for them."""

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device | str) -> Tensor:
    """Copy the host's values to a device, unless they are there already.

    For a GPU they are copied to pinned memory first, because a copy from pageable memory always blocks. torch keeps the
    pinned copy until the GPU has read it.
    """
    if torch.device(device).type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def download(values: Tensor) -> Tensor:
    """Copy a device's values to the host, from a GPU to pinned memory; valid once the device has made the copy."""
    return values.to("cpu", non_blocking=True)
