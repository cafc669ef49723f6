"""Automatic mixed precision: which number format the forward pass runs in, and whether the loss must be scaled.

Weights, gradients and optimizer state stay float32; only the operations that PyTorch's autocast lists run in the
smaller format (Micikevicius et al., "Mixed Precision Training", ICLR 2018).
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

AmpChoice = Literal["auto", "bf16", "fp16", "off"]

_BF16_CAPABILITY = (8, 0)  # Ampere
_FP16_CAPABILITY = (7, 0)  # Volta: the first with tensor cores, without which fp16 is no faster


class PrecisionError(ValueError):
    """The device cannot run in the number format that was asked for."""


@dataclass(frozen=True)
class Precision:
    """The number format of a run.

    Attributes:
        dtype: what autocast casts to; None for plain float32.
        use_scaler: scale the loss, so that small gradients do not vanish in float16.
        reason: why, in a few words, for the log.
    """

    dtype: torch.dtype | None
    use_scaler: bool
    reason: str


def resolve_amp(choice: AmpChoice, device: torch.device, *, depthwise: bool = False) -> Precision:
    """Return the number format for ``choice`` on ``device``.

    ``auto`` takes bfloat16 where the hardware multiplies it natively (CUDA from compute capability 8.0, x86 CPUs with
    AVX512-BF16 or AMX-BF16), float16 with a gradient scaler on CUDA GPUs from capability 7.0, and float32 elsewhere.

    Training steps at 48 to 96 pixels on an AMD EPYC with AVX512-BF16 took 0.5 to 0.62 of float32's time for ResNets,
    but 1.5 to 2 times as long for MobileNetV4 and LCNet, so ``auto`` leaves models with depthwise convolutions in
    float32 on a CPU. Without bfloat16 units, ResNets took 1.4 to 2.4 times as long.

    Args:
        choice: what was asked for.
        device: what the model runs on.
        depthwise: the model has depthwise convolutions.

    Raises:
        PrecisionError: the device cannot run in the format asked for.
    """
    if choice == "off":
        return Precision(None, False, "float32, as asked for")
    if device.type == "cuda":
        return _resolve_cuda(choice, torch.cuda.get_device_capability(device))
    if device.type == "cpu":
        return _resolve_cpu(choice, cpu_has_bf16(), depthwise)
    if choice == "auto":
        return Precision(None, False, f"float32: mixed precision is not used on {device.type}")
    raise PrecisionError(f"--amp {choice} runs on CUDA GPUs and CPUs, not on {device.type}; use --amp off")


def _resolve_cuda(choice: AmpChoice, capability: tuple[int, int]) -> Precision:
    version = f"compute capability {capability[0]}.{capability[1]}"
    if choice == "bf16" or (choice == "auto" and capability >= _BF16_CAPABILITY):
        if capability < _BF16_CAPABILITY:
            raise PrecisionError(f"--amp bf16 needs a GPU of compute capability 8.0; this one has {version}: use fp16")
        return Precision(torch.bfloat16, False, f"bfloat16: {version}")
    if choice == "fp16" or capability >= _FP16_CAPABILITY:
        return Precision(torch.float16, True, f"float16 with a gradient scaler: {version}")
    return Precision(None, False, f"float32: {version} has no tensor cores")


def _resolve_cpu(choice: AmpChoice, has_bf16: bool, depthwise: bool) -> Precision:
    if choice == "fp16":
        raise PrecisionError("--amp fp16 needs a CUDA GPU; on a CPU use --amp auto, bf16 or off")
    if choice == "bf16":
        return Precision(torch.bfloat16, False, "bfloat16, as asked for")
    if not has_bf16:
        return Precision(None, False, "float32: the CPU does not multiply bfloat16 natively")
    if depthwise:
        return Precision(None, False, "float32: depthwise convolutions are slower in bfloat16 on a CPU")
    return Precision(torch.bfloat16, False, "bfloat16: the CPU multiplies it natively")


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this x86 CPU has bfloat16 multiply units; False where that cannot be read."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context for the forward pass; it does nothing for float32."""
    return torch.autocast(device.type, dtype=precision.dtype, enabled=precision.dtype is not None)


def grad_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Return the loss scaler; it passes everything through unless the format is float16."""
    return torch.amp.GradScaler(device.type, enabled=precision.use_scaler)
