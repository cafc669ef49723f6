"""Colors and rules of style of charts, for pages that follow the reader's dark mode and for pictures of their own."""

from __future__ import annotations

from dataclasses import dataclass

SANS = 'Inter, "Helvetica Neue", "Segoe UI", Roboto, Arial, sans-serif'


@dataclass(frozen=True)
class Palette:
    """Colors, as CSS has them.

    Attributes:
        series: of lines and bars.
        paper, card: behind everything, and behind a chart.
        ink, soft: of text, and of text that stands back.
        rule, grid: of borders, and of a chart's grid.
    """

    series: tuple[str, ...]
    paper: str
    card: str
    ink: str
    soft: str
    rule: str
    grid: str

    def variables(self) -> str:
        """Return the colors as definitions of CSS variables, those of VARIABLES."""
        named = [(f"series{number}", color) for number, color in enumerate(self.series)]
        named += [(name, getattr(self, name)) for name in _NAMES]
        return " ".join(f"--{name}: {color};" for name, color in named)


_NAMES = ("paper", "card", "ink", "soft", "rule", "grid")
LIGHT = Palette(
    ("#2b6c8f", "#c4572f", "#5f8f4a", "#7d6aa8", "#b8871f", "#3d8f8a", "#a8506f", "#68757c"),
    paper="#fbfaf8", card="#ffffff", ink="#1d2429", soft="#5d686f", rule="#e5e2dc", grid="#d9dedf",
)  # fmt: skip
DARK = Palette(
    ("#6db3d6", "#ec8a62", "#94c47e", "#a794d6", "#e5b251", "#72c4be", "#dd8aa6", "#a2aeb4"),
    paper="#14181b", card="#1b2024", ink="#e6e8e9", soft="#98a3a9", rule="#2c3338", grid="#363f45",
)  # fmt: skip
COLORS = len(LIGHT.series)
VARIABLES = Palette(tuple(f"var(--series{number})" for number in range(COLORS)), *(f"var(--{name})" for name in _NAMES))

SHAPES = """\
svg text { font-size: 11.5px; }
svg .tick { font-size: 11px; }
svg .label, svg .group { font-weight: 600; }
svg .band { opacity: .16; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .ring { fill: none; stroke-width: 1.6; }
svg .mark { paint-order: stroke; stroke-width: 3px; }
svg .whisker { fill: none; stroke-width: 1.2; opacity: .75; }
svg .limit { stroke-width: 2.4; stroke-linecap: round; }
svg .faint { stroke-width: 2.4; stroke-linecap: round; stroke-dasharray: .1 4.2; }"""


def color_rules(palette: Palette) -> str:
    """Return the rules of a chart that hold colors."""
    rules = [
        f"svg text {{ fill: {palette.ink}; }}",
        f"svg .tick {{ fill: {palette.soft}; }}",
        f"svg .grid {{ stroke: {palette.grid}; }}",
        f"svg .mark {{ stroke: {palette.card}; }}",
        f"svg .whisker, svg .limit, svg .faint {{ stroke: {palette.ink}; }}",
    ]
    for number, color in enumerate(palette.series):
        rules += [
            f"svg .fill{number}, svg .text{number} {{ fill: {color}; }}",
            f"svg .stroke{number} {{ stroke: {color}; }}",
        ]
    return "\n".join(rules)
