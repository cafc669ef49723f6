"""Where made and downloaded things are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache folder: ``$HEADRACE_CACHE``, else ``headrace`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``.

    The folder need not exist yet.
    """
    if chosen := os.environ.get("HEADRACE_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache").absolute() / "headrace"
