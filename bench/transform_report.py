"""What bench/transform_order.py shows: the orders of a list as records, tables, charts and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.charts import Bar, Key, bar_chart
from bench.measure import Spread
from bench.page import Section
from bench.reports import Report
from bench.tables import Sheet
from bench.transform_cases import CASES, in_short
from bench.transform_measure import Timing, difference
from loaders.transforms.apply import BACKENDS
from loaders.transforms.legality import Swap
from loaders.transforms.planner import Plan

MEASURED = (*BACKENDS, "dali")
HEADINGS = ("order", "backend", "class", "cpu-ms", "predicted", "images/s", "max diff", "mean diff")
_LABELS = {Swap.SAME: "same", Swap.EXACT: "exact", Swap.APPROX: "approx", Swap.NO: "illegal"}
_LEGAL, _ILLEGAL, _CHOSEN = range(3)  # colors
_KEY = (
    Key("a legal order", _LEGAL),
    Key("the planner's choice", _CHOSEN),
    Key("illegal: another result", _ILLEGAL),
    Key("predicted", limit=0),
)
_WIDTH = 860  # pixels, for the names of long lists
_AMPLIFY = 4  # what differences are multiplied by to be seen
_ALIKE = 2.0  # levels below which nobody sees a difference between pictures


@dataclass(frozen=True)
class Result:
    """One order's figures.

    Attributes:
        backend: of MEASURED.
        chosen: this is the order that the planner chooses.
        difference: largest and mean difference from the order as written, by the same backend, in levels; None where
            the sizes differ.
        sample: what becomes of the first photo, in levels, float32 (H, W, 3).
    """

    case: str
    backend: str
    plan: Plan
    chosen: bool
    timing: Timing
    difference: tuple[float, float] | None
    sample: np.ndarray

    @property
    def order(self) -> str:
        return in_short(self.plan)

    @property
    def label(self) -> str:
        """The class, or that this is the order as written."""
        if self.plan.numbers == tuple(range(len(self.plan.program))):
            return "as written"
        return _LABELS[self.plan.swap]

    @property
    def predicted(self) -> float | None:
        """CPU time per image, in milliseconds; none for DALI, which has no planner."""
        return None if self.backend == "dali" else self.plan.cost_after

    def record(self, machine: str) -> dict[str, Any]:
        """Return the record of the JSON file."""
        return {
            "case": self.case,
            "backend": self.backend,
            "order": [operation.name for operation in self.plan.operations],
            "class": self.label,
            "planned": self.chosen,
            "cpu_ms_per_image": asdict(self.timing.cpu_ms),
            "predicted_cpu_ms": self.predicted,
            "images_per_second": asdict(self.timing.images_per_second),
            "max_difference": self.difference[0] if self.difference else None,
            "mean_difference": self.difference[1] if self.difference else None,
            "tolerance": self.plan.tolerance if self.plan.swap <= Swap.EXACT else None,
            "machine": machine,
        }


def report(name: str, results: Sequence[Result], left_out: Sequence[str], machine: str) -> Report:
    """Return what was found on a case.

    Args:
        name: of the case.
        results: of its orders.
        left_out: why backends were left out.
        machine: what was measured on.
    """
    case = CASES[name]
    sheets = [Sheet(case.title, HEADINGS, [_row(result) for result in results])]
    caption = f"{case.title}: CPU time per image of each order"
    chart = bar_chart(
        [_bar(result) for result in results], title=caption, unit="ms of CPU time per image", width=_WIDTH, key=_KEY
    )
    images = _images(results) if case.pictures else []
    section = Section(case.title, left_out, [(caption, chart)], sheets, images)
    return Report(sheets, [result.record(machine) for result in results], section, legend())


def _row(result: Result) -> list[str]:
    return [
        ("* " if result.chosen else "  ") + result.order,
        result.backend,
        result.label,
        _spread(result.timing.cpu_ms, 2),
        "" if result.predicted is None else f"{result.predicted:.2f}",
        _spread(result.timing.images_per_second, 0),
        f"{result.difference[0]:.2f}" if result.difference else "size",
        f"{result.difference[1]:.3f}" if result.difference else "size",
    ]


def _spread(spread: Spread, digits: int) -> str:
    return f"{spread.median:.{digits}f} ({spread.min:.{digits}f}-{spread.max:.{digits}f})"


def legend() -> str:
    """Return what the columns mean."""
    return (
        "*: the planner's choice. class: same, exact (rounding alone), approx (edges, clipping), illegal (another "
        "result).\ncpu-ms, images/s: of one thread, per image, median (smallest-largest) over the rounds; decoding is "
        "not counted; DALI's pipeline holds all photos as one batch.\n"
        "max, mean diff: from the order as written, in levels of 255, normalization undone."
    )


def _bar(result: Result) -> Bar:
    color = _CHOSEN if result.chosen else _ILLEGAL if result.plan.swap is Swap.NO else _LEGAL
    return Bar(result.order, result.timing.cpu_ms, color, result.backend, (result.predicted,), result.label)


def _images(results: Sequence[Result]) -> list[tuple[str, np.ndarray]]:
    """Return what the orders of one of our backends make of a photo: a picture for each class of results.

    Beside it stands how it differs from the order as written.
    """
    backend = next((b for b in ("torchvision", "kernels", "pillow") if any(r.backend == b for r in results)), None)
    group = [result for result in results if result.backend == backend]
    kept: list[Result] = []
    images = []
    for result in group:
        seen = (difference([result.sample], [other.sample]) for other in kept)
        if any(differs is not None and differs[0] <= _ALIKE for differs in seen):
            continue
        kept.append(result)
        images.append((f"{result.order} ({result.label})", _pixels(result.sample)))
        reference = kept[0].sample
        if result is not kept[0] and result.sample.shape == reference.shape:
            strength = 255 - _AMPLIFY * np.abs(result.sample - reference)
            caption = f"its difference from the order as written, {_AMPLIFY} times as strong"
            images.append((caption, _pixels(strength)))
    return images


def _pixels(levels: np.ndarray) -> np.ndarray:
    return levels.round().clip(0, 255).astype(np.uint8)
