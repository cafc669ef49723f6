"""How many processor cores this process may use."""

from __future__ import annotations

import os

from loaders.control_groups import cpu_quota


def usable_cores(local_world_size: int = 1) -> float:
    """Return the cores open to this process: those of its affinity mask, within the quota of its control groups.

    ``os.cpu_count`` counts the machine's cores, of which a container or a batch job often has a fraction.

    Args:
        local_world_size: processes of one job on this machine, which share its cores evenly. Where what started them
            gave each a mask of its own, these are the cores of that mask.
    """
    own = _mask(0)
    shared = own if local_world_size == 1 else max(own, _mask(os.getppid()))
    return min(float(own), shared / local_world_size, cpu_quota() / local_world_size)


def decoding_threads(num_workers: int, cores: float) -> int:
    """Return how many threads a loader that decodes in threads uses when it is asked for so many workers.

    At least one, as nobody else decodes, and no more than there are cores.

    Args:
        num_workers: asked for.
        cores: that may be used.
    """
    return max(1, min(num_workers, int(cores)))


def _mask(process: int) -> int:
    """Return how many cores a process may run on; of another than this one (0), 0 where that cannot be told."""
    try:
        return len(os.sched_getaffinity(process))
    except (AttributeError, OSError):  # no Linux; a process that has ended
        return 0 if process else os.cpu_count() or 1
