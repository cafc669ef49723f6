"""Words for people."""


def plural(count: float, noun: str, ending: str = "s") -> str:
    """Write a count with its noun."""
    return f"{count:g} {noun if count == 1 else noun + ending}"
