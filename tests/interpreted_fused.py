"""The Triton kernel against its twin, on a CPU: run by tests/test_fused.py, in a process of its own.

Triton's interpreter has to be chosen before Triton is imported.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from hypothesis import given, settings

from kernels.fused import fuse_by_torch
from kernels.fused_triton import fuse_by_triton
from tests.test_fused import MEAN, STD, Case, cases


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_the_kernel_gives_what_its_twin_gives(case: Case) -> None:
    options = (case.memory_format, case.flip, case.erase, case.mix)
    before = case.images.clone()
    result = fuse_by_triton(case.images, MEAN, STD, case.dtype, *options)
    twin = fuse_by_torch(case.images, MEAN, STD, torch.float32, *options)
    assert result.dtype == case.dtype
    assert result.shape == twin.shape
    assert result.is_contiguous(memory_format=case.memory_format)
    assert torch.equal(case.images, before)
    # The interpreter truncates bfloat16, which a device rounds; where the twin is near a tie, rounding may differ.
    relative = {torch.float32: 0.0, torch.float16: 2**-10, torch.bfloat16: 2**-7}[case.dtype]
    torch.testing.assert_close(result.to(torch.float32), twin, atol=1e-6, rtol=relative)
    if case.dtype == torch.float16:
        in_float32 = fuse_by_triton(case.images, MEAN, STD, torch.float32, *options)
        assert torch.equal(result, in_float32.to(torch.float16))
