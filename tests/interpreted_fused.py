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
from tests.test_fused import Case, cases


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_the_kernel_gives_what_its_twin_gives(case: Case) -> None:
    before = case.images.clone()
    result = case.fused_by(fuse_by_triton, case.dtype)
    twin = case.fused_by(fuse_by_torch, torch.float32)
    assert torch.equal(case.images, before)
    # The interpreter truncates bfloat16, which a device rounds; where the twin is near a tie, rounding may differ.
    relative = {torch.float32: 0.0, torch.float16: 2**-10, torch.bfloat16: 2**-7}[case.dtype]
    torch.testing.assert_close(result.to(torch.float32), twin, atol=1e-6, rtol=relative)
    if case.dtype == torch.float16:
        in_float32 = case.fused_by(fuse_by_triton, torch.float32)
        assert torch.equal(result, in_float32.to(torch.float16))
