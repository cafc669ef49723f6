"""Layer freezing: parts of a model that keep their weights and their batch-norm statistics."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class FreezeError(ValueError):
    """A layer to freeze that does not exist, or nothing left to train."""


def freeze(model: nn.Module, patterns: str) -> list[str]:
    """Freeze the parameters below the named modules.

    Call it before the optimizer, ``torch.compile`` and distributed wrappers are made, and ``train_mode`` instead of
    ``model.train()`` afterwards.

    Args:
        model: the model.
        patterns: comma-separated names of modules or parameters as ``model.named_parameters()`` spells them, with
            the wildcards of ``fnmatch``: ``"conv1,layer1"``, ``"blocks.[0-3]"``. ``stem`` also stands for what timm
            groups under that name.

    Returns:
        The names of the frozen parameters, in the model's order; empty when ``patterns`` is.

    Raises:
        FreezeError: a pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matches = _matcher(model, pattern)
        matched = {name for name in names if matches(name)}
        if not matched:
            top_level = ", ".join(name for name, _ in model.named_children())
            raise FreezeError(f"--freeze: {pattern!r} matches no parameter of the model; its modules are {top_level}")
        frozen |= matched
    if frozen and frozen.issuperset(name for name, parameter in model.named_parameters() if parameter.requires_grad):
        raise FreezeError(f"--freeze {patterns} leaves nothing to train")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return [name for name in names if name in frozen]


def _matcher(model: nn.Module, pattern: str) -> Callable[[str], bool]:
    """Return what tells whether a dotted parameter name lies below ``pattern``."""
    group_matcher: Any = getattr(model, "group_matcher", None)
    if pattern == "stem" and not hasattr(model, "stem") and group_matcher is not None:
        groups = group_matcher()
        if isinstance(groups, dict) and isinstance(groups.get("stem"), str):
            stem = re.compile(groups["stem"])
            return lambda name: stem.match(name) is not None

    def matches(name: str) -> bool:
        parts = name.split(".")
        return any(fnmatchcase(".".join(parts[:depth]), pattern) for depth in range(1, len(parts) + 1))

    return matches


def train_mode(model: nn.Module) -> nn.Module:
    """Put the model in training mode, except for batch norms whose weights are frozen: their statistics stay."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            parameters = list(module.parameters(recurse=False))
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
    return model
