"""How single values of the configuration are written, bounded and read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what to change."""


@dataclass(frozen=True)
class Bounds:
    """The range of a number, or of each number of a tuple; stands in a field's ``Annotated`` type.

    Attributes:
        low, high: ends of the range.
        above: ``low`` itself is not allowed.
        below: ``high`` itself is not allowed.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        return low and high and value != math.inf

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.below else 'at most'} {self.high:g}"


def option(*aliases: str, metavar: str | None = None, unset: str | None = None) -> Any:
    """Return how a field appears on the command line; stands in the field's ``Annotated`` type.

    Args:
        aliases: further flags, with their dashes.
        metavar: what stands for the value in the help.
        unset: what the help gives as the default when the field is None or empty.
    """

    def hint(default: str) -> str:
        return f"(default: {unset if unset and default in ('None', '', repr('')) else default})"

    return arg(aliases=aliases or None, metavar=metavar, help_behavior_hint=hint)


def comma_separated(
    kind: Callable[[str], Any], metavar: str, words: tuple[str, ...] = (), length: int | None = None
) -> PrimitiveConstructorSpec[Any]:
    """Return how tyro reads a tuple written as one word, such as ``128,160,192``.

    Args:
        kind: reads one element.
        metavar: what stands for the value in the help and in errors.
        words: words allowed in place of numbers; they are kept as they are.
        length: number of elements, if it is fixed.
    """

    def read(words_given: list[str]) -> Any:
        text = words_given[0].strip()
        if text in words:
            return text
        try:
            value = tuple(kind(part) for part in text.split(",")) if text else ()
        except ValueError:
            raise ValueError(f"{text!r} is not of the form {metavar}") from None
        if length is not None and len(value) != length:
            raise ValueError(f"{text!r} is not of the form {metavar}")
        return value

    def write(value: Any) -> list[str]:
        return [",".join(map(str, value)) if isinstance(value, tuple) else str(value)]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, tuple) or value in words,
        str_from_instance=write,
    )


ON_OFF: PrimitiveConstructorSpec[bool] = PrimitiveConstructorSpec(
    nargs=1,
    metavar="{on,off}",
    instance_from_str=lambda words: words[0] == "on",
    is_instance=lambda value: isinstance(value, bool),
    str_from_instance=lambda value: [{True: "on", False: "off"}.get(value, "None")],
    choices=("on", "off"),
)
"""How tyro reads a boolean that can also be left open; one that cannot is a pair of flags."""

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_DURATION_PART = r"(\d+(?:\.\d+)?)\s*(min|[smhd])"


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``90s``, ``10min``, ``2h``, ``1h30min`` or ``0.5d``.

    Raises:
        ConfigError: ``text`` is no duration, or is zero.
    """
    parts = re.findall(_DURATION_PART, text)
    if not re.fullmatch(rf"\s*(?:{_DURATION_PART}\s*)+", text):
        raise ConfigError(
            f"{text!r} is no duration; write a number with its unit, for example 90s, 10min, 2h or 1h30min"
        )
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not seconds > 0:
        raise ConfigError(f"{text!r} is no duration; it must be above zero")
    return seconds


class Target(NamedTuple):
    """A value of a validation metric at which to stop."""

    metric: str
    value: float


_TARGET_METRICS = ("top1", "top5")


def parse_target(text: str) -> Target:
    """Return the metric and the value, in percent, of a target such as ``top1=93``.

    Raises:
        ConfigError: ``text`` is no target.
    """
    match = re.fullmatch(rf"\s*({'|'.join(_TARGET_METRICS)})\s*=\s*(\d+(?:\.\d+)?)\s*", text)
    if match is None or not 0 < float(match[2]) <= 100:
        raise ConfigError(f"{text!r} is no target; write top1 or top5 and a percentage, for example top1=93")
    return Target(match[1], float(match[2]))
