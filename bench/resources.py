"""What processes use of the machine: CPU time, memory, and what the machine is."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

MEGABYTE = 1e6


def tree_cpu_seconds() -> float:
    """Return the CPU time used so far by this process and all its descendants, those that have ended included."""
    total = 0.0
    for process in _tree():
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def tree_resident_mb() -> float:
    """Return this process's resident memory plus what its descendants hold for themselves, in 10**6 bytes.

    Pages that workers share with this process (code, forked memory, batches in shared memory) count once.
    """
    this, *descendants = _tree()
    total = this.memory_info().rss
    for process in descendants:
        try:
            total += process.memory_full_info().uss
        except psutil.NoSuchProcess:
            continue
    return total / MEGABYTE


def _tree() -> list[psutil.Process]:
    this = psutil.Process()
    return [this, *this.children(recursive=True)]


def machine_cpu_seconds() -> float:
    """Return the CPU time used so far on the whole machine, by anyone, time stolen by a hypervisor included."""
    times = psutil.cpu_times()
    kinds = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(getattr(times, kind, 0.0) for kind in kinds)


def describe_machine() -> str:
    """Return one line on the machine and the versions that matter for the figures."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    parts = [f"{os.cpu_count()} cores, {cpu}", f"Python {platform.python_version()}"]
    for package in ("torch", "torchvision", "pillow", "nvidia-dali-cuda130", "ffcv", "nvidia-dali-cuda120"):
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(parts)
