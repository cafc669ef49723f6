"""How many processor cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(local_world_size: int = 1) -> float:
    """Return the cores open to this process: those of its affinity mask, within the quota of its control groups.

    ``os.cpu_count`` counts the machine's cores, of which a container or a batch job often has a fraction.

    Args:
        local_world_size: processes of one job on this machine, which share its cores evenly.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(float(cores), _quota()) / local_world_size


def decoding_threads(num_workers: int, cores: float) -> int:
    """Return how many threads a loader that decodes in threads uses when it is asked for so many workers.

    At least one, as nobody else decodes, and no more than there are cores.

    Args:
        num_workers: asked for.
        cores: that may be used.
    """
    return max(1, min(num_workers, int(cores)))


def _quota(membership: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> float:
    """Return the smallest limit, in cores, on the way from this process's control group to the root."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return float("inf")
    limit = float("inf")
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":  # version 2: one hierarchy
            base, read = root, _limit_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "cpu", _limit_v1
        else:
            continue
        # Within a container the name may be that of the host, where only the root of the hierarchy is visible.
        group = base / name.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                limit = min(limit, read(folder))
    return limit


def _limit_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return float("inf") if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return float("inf")


def _limit_v1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 and period > 0 else float("inf")
    except (OSError, ValueError):
        return float("inf")
