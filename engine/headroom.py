"""How far loading and training are from their limits at a size, from what an epoch has taken."""

from __future__ import annotations

from engine.charts import number
from engine.roofline import LIMIT_NAMES, RESOURCE_NAMES, Demand, Machine, limit_of, roofline
from engine.time_spent import Record, left_out, time_spent, without

_SECONDS_TO_TELL = 2.0  # of training
_FACTOR_WORTH_TELLING = 1000


def headroom(record: Record) -> str | None:
    """Say in a line what bounds the rate of a process at the size of an epoch, and by how much all else is faster.

    It is the operational roofline (engine/roofline.py) of what training itself has measured, after the number of
    workers was found. How fast a disk or a bus could go it does not show; the doctor measures that.

    Args:
        record: of the epoch.

    Returns:
        The line; None where the epoch shows too little.
    """
    epoch = without(record, left_out(record))
    spent = time_spent([epoch])
    loading, all_of_it = epoch.get("loading_cpu_ms_per_image"), epoch.get("cpu_ms_per_image")
    images = float(epoch.get("images_per_second") or 0.0) * spent.training / float(epoch.get("world_size") or 1)
    if spent.training < _SECONDS_TO_TELL or not images or loading is None or all_of_it is None:
        return None
    demand = Demand(
        cpu_seconds={"loading": loading / 1000},
        step_seconds=spent.compute / images,
        step_cpu_seconds=max(0.0, all_of_it - loading) / 1000,
        augment_seconds=spent.augmentation / images,
    )
    limits = roofline(Machine(float(epoch["cores"])), demand, int(epoch["num_workers"]))
    others = sorted((factor, name) for name, factor in limits.headroom.items() if 1 < factor < _FACTOR_WORTH_TELLING)
    more = ", ".join(f"{RESOURCE_NAMES[name]} {factor:.1f}x" for factor, name in others)
    limit = LIMIT_NAMES[limit_of(demand, limits.bound)]
    line = f"Limit at {epoch['resolution']} px: {limit}, at {number(limits.rate)} images/s"
    return f"{line}; headroom: {more}" if more else line
