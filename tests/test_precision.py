"""Tests of engine.precision."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from engine.precision import (
    Precision,
    PrecisionError,
    _resolve_cpu,
    _resolve_cuda,
    autocast,
    cpu_has_bf16,
    grad_scaler,
    resolve_amp,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("choice", "capability", "dtype", "use_scaler"),
    [
        ("auto", (9, 0), torch.bfloat16, False),
        ("auto", (8, 0), torch.bfloat16, False),
        ("auto", (7, 5), torch.float16, True),
        ("auto", (7, 0), torch.float16, True),
        ("auto", (6, 1), None, False),
        ("fp16", (6, 1), torch.float16, True),
        ("fp16", (9, 0), torch.float16, True),
        ("bf16", (8, 6), torch.bfloat16, False),
    ],
)
def test_cuda_follows_the_compute_capability(choice, capability, dtype, use_scaler):
    precision = _resolve_cuda(choice, capability)
    assert (precision.dtype, precision.use_scaler) == (dtype, use_scaler)


def test_bf16_on_an_old_gpu_is_refused():
    with pytest.raises(PrecisionError, match=r"8\.0.*7\.5.*use fp16"):
        _resolve_cuda("bf16", (7, 5))


@pytest.mark.parametrize(
    ("choice", "has_bf16", "depthwise", "dtype"),
    [
        ("auto", True, False, torch.bfloat16),
        ("auto", True, True, None),
        ("auto", False, False, None),
        ("bf16", False, False, torch.bfloat16),
        ("bf16", True, True, torch.bfloat16),
    ],
)
def test_cpu_follows_its_units_and_the_model(choice, has_bf16, depthwise, dtype):
    precision = _resolve_cpu(choice, has_bf16, depthwise)
    assert precision.dtype == dtype
    assert not precision.use_scaler


def test_fp16_needs_a_gpu():
    with pytest.raises(PrecisionError, match="CUDA"):
        resolve_amp("fp16", CPU)


def test_off_is_float32_everywhere():
    assert resolve_amp("off", CPU).dtype is None
    assert resolve_amp("off", torch.device("cuda")).dtype is None


def test_other_devices_run_in_float32():
    device = torch.device("mps")
    assert resolve_amp("auto", device).dtype is None
    with pytest.raises(PrecisionError, match="mps"):
        resolve_amp("bf16", device)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 flags")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu sse avx512f avx512_bf16", True), ("fpu amx_bf16", True), ("fpu avx512f avx512_bf16_like", False)],
)
def test_cpu_flags(tmp_path: Path, flags: str, expected: bool):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    assert cpu_has_bf16(cpuinfo) is expected


def test_unknown_cpu_has_no_bf16(tmp_path: Path):
    assert not cpu_has_bf16(tmp_path / "missing")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_autocast_changes_the_forward_pass_only_when_asked(dtype):
    layer = torch.nn.Linear(4, 4)
    with autocast(Precision(dtype, False, ""), CPU):
        output = layer(torch.zeros(1, 4))
    assert output.dtype == (dtype or torch.float32)


def test_scaler_passes_through_unless_asked():
    scaler = grad_scaler(Precision(torch.bfloat16, False, ""), CPU)
    assert scaler.scale(torch.tensor(2.0)).item() == 2.0
    assert grad_scaler(Precision(torch.float16, True, ""), CPU).is_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_auto_on_this_gpu_trains_a_step():
    device = torch.device("cuda")
    precision = resolve_amp("auto", device)
    layer = torch.nn.Linear(8, 8).to(device)
    scaler = grad_scaler(precision, device)
    with autocast(precision, device):
        loss = layer(torch.ones(2, 8, device=device)).float().sum()
    scaler.scale(loss).backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
