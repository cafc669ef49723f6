"""Uploading small arrays to the device."""

from __future__ import annotations

import numpy as np
import torch

Color = tuple[float, float, float]


def upload(array: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a small host array as a tensor on ``device`` without waiting for the device.

    On CUDA the array goes through page-locked memory and is copied in the order of the current stream; on a CPU the
    tensor shares the array's memory.
    """
    host = torch.as_tensor(array)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
