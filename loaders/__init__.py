"""Loaders: a data set and an epoch's plan in, batches out.

For one's own training loop::

    from loaders import ImageLoader, open_data

    data = open_data("demo")
    with ImageLoader(data.train, resolution=64, batch_size=64) as loader:
        for images, targets in loader:
            ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loaders.feed import ImageLoader
    from loaders.opening import open_data

__all__ = ["ImageLoader", "open_data"]


def __getattr__(name: str) -> object:
    # Imported on demand, so that worker processes and small tools load no more than they need.
    if name == "ImageLoader":
        from loaders.feed import ImageLoader

        return ImageLoader
    if name == "open_data":
        from loaders.opening import open_data

        return open_data
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
