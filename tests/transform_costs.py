"""Costs of transforms without measuring: a unit for each byte that a step takes or makes, whichever are more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from loaders.transforms.cost import Costs, Form, Formed
from loaders.transforms.steps import Call, Size, Skip, Step


class PixelCosts(Costs):
    """Costs in proportion to bytes."""

    def __init__(self) -> None:
        super().__init__(execute=_refuse)

    def of(self, step: Step, size: Size, backend: str, form: Form) -> float:
        if isinstance(step, Skip | Call):
            return 0.0
        height, width = step.output_size(size)
        taken = size[0] * size[1] * (4 if form.is_float else 1)
        return 3e-6 * max(taken, height * width * (4 if form.is_float or step.makes_float else 1))

    def leaves(self, step: Step, backend: str, form: Form) -> Form:
        return replace(form, is_float=form.is_float or step.makes_float)


def _refuse(*_: object) -> Callable[[], Formed]:
    raise AssertionError("costs are measured")
