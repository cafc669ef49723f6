"""Uploading."""

from __future__ import annotations

import numpy as np
import torch

from kernels.device import upload


def test_upload_shares_memory_on_a_cpu() -> None:
    array = np.arange(5)
    assert upload(array, torch.device("cpu")).data_ptr() == array.ctypes.data
