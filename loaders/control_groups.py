"""What the control groups of this process allow it: processor time and memory (Linux, versions 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Group:
    """A control group: its folder, and the version of the interface whose files it holds."""

    folder: Path
    version: int

    def number(self, name: str) -> float:
        """Return what a file holds: a number; infinite for ``max`` and where there is none."""
        with suppress(OSError, ValueError):
            text = (self.folder / name).read_text().strip()
            return math.inf if text == "max" else float(int(text))
        return math.inf

    def statistic(self, name: str) -> float:
        """Return a line of ``memory.stat``; 0 where there is none."""
        with suppress(OSError, ValueError):
            for line in (self.folder / "memory.stat").read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == name:
                    return int(value)
        return 0


def cpu_quota(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> float:
    """Return the smallest quota, in cores, on the way from this process's control group to the root."""
    return min((_quota_of(group) for group in _groups("cpu", membership, root)), default=math.inf)


def memory_limit(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> float:
    """Return the smallest limit, in bytes, on the way from this process's control group to the root."""
    return min((_limit_of(group) for group in _groups("memory", membership, root)), default=math.inf)


def memory_left(membership: Path = _MEMBERSHIP, root: Path = _ROOT) -> float:
    """Return how many bytes the control groups still allow: what they use is taken off, file cache aside."""
    return min((_left_of(group) for group in _groups("memory", membership, root)), default=math.inf)


def _groups(controller: str, membership: Path, root: Path) -> Iterator[_Group]:
    """Yield the groups of this process that a controller may limit, each followed by its parents."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":  # version 2: one hierarchy
            bases, version = [root], 2
        elif controller in controllers.split(","):
            # Controllers that are mounted together have a folder of all their names, and often a link of each name.
            bases, version = [base for base in _folders(root) if controller in base.name.split(",")], 1
        else:
            continue
        for base in bases:
            # Within a container the name may be that of the host, where only the root of the hierarchy is visible.
            group = base / name.strip("/")
            yield from (_Group(folder, version) for folder in (group, *group.parents) if folder.is_relative_to(base))


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir())
    except OSError:
        return []


def _quota_of(group: _Group) -> float:
    if group.version == 1:
        quota, period = group.number("cpu.cfs_quota_us"), group.number("cpu.cfs_period_us")
        return quota / period if 0 < quota < math.inf and 0 < period < math.inf else math.inf
    with suppress(OSError, ValueError):
        allowed, each = (group.folder / "cpu.max").read_text().split()
        return math.inf if allowed == "max" else int(allowed) / int(each)
    return math.inf


def _limit_of(group: _Group) -> float:
    return group.number("memory.limit_in_bytes" if group.version == 1 else "memory.max")


def _left_of(group: _Group) -> float:
    """Return the limit less what is used and cannot be freed: inactive file cache is what the kernel frees first."""
    limit = _limit_of(group)
    used = group.number("memory.usage_in_bytes" if group.version == 1 else "memory.current")
    if math.isinf(limit) or math.isinf(used):
        return limit
    cache = group.statistic("total_inactive_file" if group.version == 1 else "inactive_file")
    return max(0.0, limit - max(0.0, used - cache))
