"""How many workers are enough: the knee of a curve of rates, and in a sentence why it is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.measure import FOREIGN_CPU_LIMIT, Spread
from loaders.wording import plural

TOLERANCE = 0.05  # of the best rate that may be given up for fewer workers
SPREAD_TOLERANCE = 0.1  # of it, where the best one's rounds differ by as much
FULL = 0.9  # from this share of the usable cores' time on, the cores are what limits
IDLE_WAIT = 0.05  # up to this share of its time, a model's wait for data is not worth a worker


@dataclass(frozen=True)
class Point:
    """What was measured with a number of workers.

    Attributes:
        rate: images per second.
        busy: share of the usable cores' time that was used, 0 to 1.
        others: share of the usable cores' time that other processes took, 0 to 1.
        wait: share of the time that training waited for data, 0 to 1; None where nothing was trained.
        loading: share of the CPU time that was not the training's, 0 to 1; None where nothing was trained.
    """

    rate: Spread
    busy: float
    others: float = 0.0
    wait: float | None = None
    loading: float | None = None


def knee(curve: Mapping[int, Spread]) -> int:
    """Return the smallest count whose median is within 5 % of the best, or within its spread and 10 % of it.

    Args:
        curve: rates by count; at least one.
    """
    best = max(curve.values(), key=lambda rate: rate.median)
    enough = min((1 - TOLERANCE) * best.median, max(best.min, (1 - SPREAD_TOLERANCE) * best.median))
    return min(count for count, rate in curve.items() if rate.median >= enough)


def explain(curve: Mapping[int, Point], cores: float) -> str:
    """Say in one sentence how many workers are enough, what they reach, and what more of them would do.

    Args:
        curve: what was measured, by number of workers; at least one.
        cores: that could be used.
    """
    chosen = knee({count: point.rate for count, point in curve.items()})
    point = curve[chosen]
    reached = f"{plural(chosen, 'worker')}: {point.rate.median:,.0f} images/s"
    if point.wait is None:
        reached += f", {_percent(point.busy)} of what {plural(cores, 'core')} can do"
    else:
        reached += f", waiting for data {_percent(point.wait)} of the time"
    if point.loading is not None:
        reached += f", {_percent(point.loading)} of the CPU time for loading"
    more = sorted(count for count in curve if count > chosen)
    limit = _limit(point)
    if more:
        other = curve[more[0]]
        growth = _percent(other.rate.median / point.rate.median - 1, sign=True)
        change = f"with {more[0]} it was {other.rate.median:,.0f} ({growth})"
        if not limit and point.rate.median < (1 - TOLERANCE) * other.rate.median:  # and enough: see `knee`
            limit = "the rounds of the best differ by as much"
        return f"{reached}; {change}: {limit or _why_no_faster(other, more[0] - chosen)}."
    return f"{reached}; no more were measured" + (f": {limit}." if limit else ", and more might help.")


def _limit(point: Point) -> str:
    """Return what the rates say, or why they say little; empty where nothing is known to be the limit."""
    if point.others > FOREIGN_CPU_LIMIT:  # which makes the rates themselves doubtful
        return f"other processes took {_percent(point.others)} of the cores"
    if point.wait is not None and point.wait <= IDLE_WAIT:
        return "the model is the limit"
    if point.busy >= FULL:
        return "all cores are busy"
    return ""


def _why_no_faster(point: Point, added: int) -> str:
    """Return why so many more workers than were enough, which gave this point, brought little."""
    if point.others > FOREIGN_CPU_LIMIT:
        return f"other processes took {_percent(point.others)} of the cores then"
    if point.busy >= FULL and point.wait is None:
        return "all cores were busy then"
    if point.busy >= FULL:
        workers = "the additional worker took its core" if added == 1 else "the additional workers took their cores"
        return f"{workers} from the model"
    if point.wait is not None and point.wait <= IDLE_WAIT:
        return "the model was the limit then"
    return "cores were left, but more workers did not use them"


def _percent(share: float, sign: bool = False) -> str:
    """Write a share in whole percent, without a sign on zero."""
    whole = round(100 * share)
    return f"{whole:+d} %" if sign and whole else f"{whole:d} %"


def explain_depth(curve: Mapping[int, Spread]) -> str:
    """Say in half a sentence how many batches ahead are enough.

    Args:
        curve: rates by prefetch depth; at least one.
    """
    chosen = knee(curve)
    rates = ", ".join(f"{depth}: {rate.median:,.0f}" for depth, rate in sorted(curve.items()))
    return f"a prefetch depth of {chosen} is enough (images/s by depth: {rates})."
