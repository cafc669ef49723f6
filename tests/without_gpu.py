"""What can be said of Triton kernels on a machine without a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def run_interpreted(name: str) -> None:
    """Run a file of tests that chooses Triton's interpreter, in a process of its own."""
    tests = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", str(tests)]
    ended = subprocess.run(command, cwd=tests.parent.parent, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


class _Hopper:
    """What Triton's compiler asks of a driver."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def compile_only(monkeypatch: pytest.MonkeyPatch, cache: Path, kernel: Any) -> Callable[[], int]:
    """Have starts of a kernel end with its compilation for an NVIDIA H100; return what counts compilations."""
    from triton.runtime import driver

    run, kernels = kernel.run, defaultdict(kernel.create_binder)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setattr(driver, "_active", _Hopper())
    monkeypatch.setattr(kernel, "device_caches", kernels)
    monkeypatch.setattr(kernel, "run", lambda *args, warmup, **kwargs: run(*args, warmup=True, **kwargs))
    return lambda: len(kernels[0][0])
