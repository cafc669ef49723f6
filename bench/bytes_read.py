"""How many bytes a loader reads for an image, from what it reads them from: a data set's index or a stored form."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.peers import RATIO, SCALE
from bench.variants import split_name
from loaders.cache import cache_dir
from loaders.dataset import ImageDataset
from loaders.packed import PackedDataset, open_packed
from loaders.plan import EpochPlan, View


def bytes_per_image(name: str, dataset: ImageDataset, packed: Path | None, resolution: int) -> float:
    """Return the mean size of what a loader reads for an image: the file, or the record in its stored form.

    A record of a packed set is read whole, since its checksum is compared, and has its restart index beside it. With
    smaller versions of the images it is the mean over those that the crops of an epoch take. FFCV's loaders map their
    file into memory: they take from a JPEG what they decode, and from raw pixels the rows of the crop, so that this is
    what they read at most.

    Args:
        name: of the loader or peer, with its variant.
        dataset: the images as the loader is given them.
        packed: the folder of a packed set that is read in place of ``dataset``.
        resolution: of the images delivered, pixels.
    """
    if packed is not None:
        return _packed_bytes(open_packed(packed).train, resolution)
    if name == "synthetic":
        return 0.0
    if "ffcv" in split_name(name)[0]:
        from loaders.ffcv_file import JPEG_500, RAW_256, open_beton

        storage = RAW_256 if name.endswith("raw256") else JPEG_500
        return float(open_beton(dataset, storage, cache_dir(), show_progress=False).lengths.mean())
    return float(dataset.sizes.mean())


def _packed_bytes(dataset: ImageDataset, resolution: int) -> float:
    assert isinstance(dataset, PackedDataset)
    sizes = dataset.records.lengths + 4 * dataset.records.index_counts
    if not dataset.renditions:
        return float(sizes.mean())
    plan = EpochPlan(dataset, 0, View(resolution, len(dataset), scale=SCALE, ratio=RATIO)).batch(0)
    taken = sizes[plan.indices]
    for rendition in dataset.renditions:  # as the region loader: the smallest that the crop is not enlarged from
        sides = plan.windows[:, 2:] * np.stack([rendition.widths, rendition.heights], axis=1)[plan.indices]
        smaller = rendition.lengths + 4 * rendition.index_counts
        taken = np.where(sides.min(axis=1) >= resolution, smaller[plan.indices], taken)
    return float(taken.mean())
