"""Exponential moving average of the weights, evaluated in place of the weights themselves.

Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992. timm's ``ModelEmaV3`` does the work:
its step count is an argument, so that, unlike with ``torch.optim.swa_utils.AveragedModel``, nothing waits for the
device, and an interrupted run continues with the same decay.
"""

from __future__ import annotations

from timm.utils import ModelEmaV3
from torch import nn


def create_ema(model: nn.Module, decay: float) -> ModelEmaV3:
    """Return a moving average that starts at the weights of ``model``.

    After each optimizer step call ``ema.update(model, step)``, ``step`` counting the run's optimizer steps from 1;
    evaluate ``ema.module``. Floating-point buffers (batch-norm statistics) are averaged with the weights they belong
    to, other buffers are copied. The decay rises as 1 - step ** (-2/3) until it reaches ``decay``, so that short runs
    are not held back by their first weights.

    Args:
        model: the bare model on its device, before ``torch.compile`` and distributed wrappers.
        decay: share of the average that a step keeps, in [0, 1).

    Raises:
        ValueError: ``decay`` is out of range.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"--ema-decay must be in [0, 1), got {decay}")
    return ModelEmaV3(model, decay=decay, use_warmup=True)
