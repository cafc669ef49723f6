"""What processes use of the machine: CPU time, memory, and what the machine is."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

MEGABYTE = 1e6
_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class CoresUsage:
    """CPU time on some cores.

    Attributes:
        own: of this process and all its descendants, in seconds.
        busy: of anyone on these cores, in seconds.
        available: of these cores in that time, in seconds.
    """

    own: float = 0.0
    busy: float = 0.0
    available: float = 0.0

    @property
    def foreign(self) -> float:
        """Share of these cores' time that went to other processes, 0 to 1."""
        return max(0.0, self.busy - self.own) / self.available if self.available else 0.0

    def __add__(self, other: CoresUsage) -> CoresUsage:
        return CoresUsage(self.own + other.own, self.busy + other.busy, self.available + other.available)


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


def tree_peak_mb() -> float:
    """Return the most memory that this process and its descendants have held, each since it began, in 10**6 bytes.

    That of this process is its largest resident memory (proc(5), VmHWM). That of a descendant is the same without the
    pages that it shares with others now (code, forked memory, batches in shared memory), which count once. As each
    reached its own peak at its own time, the sum is at least what they held together, but for those that have ended.
    """
    this, *descendants = _tree()
    total = _peak_bytes(this.pid)
    for process in descendants:
        try:
            memory = process.memory_full_info()
            total += max(memory.uss, _peak_bytes(process.pid) - (memory.rss - memory.uss))
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            continue
    return total / MEGABYTE


def _peak_bytes(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    sizes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]  # none of a process that has just ended
    return int(sizes[0]) * 1024 if sizes else 0


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


class CoresWatch:
    """Tells how busy others keep the cores that this process may use, or some of them, from when it is made on.

    Args:
        cores: their numbers; None for all that this process may use.
    """

    def __init__(self, cores: Collection[int] | None = None) -> None:
        self._cores = set(os.sched_getaffinity(0) if cores is None else cores)
        self._busy, self._own, self._start = _busy_seconds(self._cores), tree_cpu_seconds(), time.perf_counter()

    def usage(self) -> CoresUsage:
        """Return what was used so far."""
        own, busy = tree_cpu_seconds() - self._own, _busy_seconds(self._cores) - self._busy
        available = (time.perf_counter() - self._start) * len(self._cores)
        return CoresUsage(own, busy, available)


def _busy_seconds(cores: Collection[int]) -> float:
    """Return the CPU time used so far on these cores, by anyone, time stolen by a hypervisor included."""
    ticks = 0
    for line in _STAT.read_text().splitlines():
        name, *counts = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, counts[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


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
