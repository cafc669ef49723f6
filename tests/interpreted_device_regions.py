"""The Triton kernel for regions against its twin, on a CPU: run by tests/test_device_regions.py, in its own process.

Triton's interpreter has to be chosen before Triton is imported.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.device_regions import resample_by_torch
from kernels.device_regions_triton import resample_by_triton
from tests.test_device_regions import LAYOUTS, Batch, batches


# The interpreter takes its time for every tap: few of them here, which are many to the other tests.
@settings(deadline=None, max_examples=10)
@given(batch=batches(longest=40, lowest_resolution=13), memory_format=st.sampled_from(LAYOUTS))
def test_the_kernel_gives_what_its_twin_gives(batch: Batch, memory_format: torch.memory_format) -> None:
    result = resample_by_triton(batch.regions, batch.resolution, memory_format)
    twin = resample_by_torch(batch.regions, batch.resolution, memory_format)
    assert result.stride() == twin.stride()
    difference = (result.int() - twin.int()).abs()
    assert (difference <= 1).all()
    assert int(difference.sum()) <= 0.01 * difference.numel()  # where rounding decides
