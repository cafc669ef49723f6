"""What packing a data set would bring, measured on a few of its images."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from engine.doctor_rates import LoadingCost, loading_costs
from kernels.random import Stream, permutation
from loaders.augment import Augmentation
from loaders.dataset import ImageData, ImageDataset
from loaders.pack_job import pack
from loaders.pack_records import PackError, PackOptions
from loaders.pack_sources import source_of
from loaders.packed import PackedDataset, open_packed

_IMAGES = 128


@dataclass(frozen=True)
class PackingGain:
    """Packed images beside the files that they were made of.

    Attributes:
        images: on how many this was measured.
        costs: of loading them, for each size.
        mean_bytes: of an image, packed.
        original_bytes: of the same images' files, on average.
    """

    images: int
    costs: tuple[LoadingCost, ...]
    mean_bytes: float
    original_bytes: float


def packing_gain(
    dataset: ImageDataset, resolutions: Sequence[int], augmentation: Augmentation, seconds: float, bar: tqdm[None]
) -> PackingGain | None:
    """Pack some images of a set, at random, into a temporary folder, and measure how they load.

    Args:
        dataset: the set.
        resolutions: pixels.
        augmentation: says how crops are drawn.
        seconds: to load for; packing comes on top.
        bar: to be moved on by 1 in all.

    Returns:
        None where there is nothing to pack: the set is packed, or no image can be decoded.
    """
    if isinstance(dataset, PackedDataset):
        bar.update(1)
        return None
    bar.set_postfix_str("packing some images")
    chosen = dataset.select(permutation(0, 0, len(dataset), Stream.SPLIT)[:_IMAGES])
    source = source_of(ImageData(dataset.name, chosen, chosen.select(np.arange(1))))  # a packed set has both splits
    options = PackOptions(max(500, 2 * max(resolutions)))  # as --loader roi packs
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        try:
            pack(source, Path(folder) / "packed", options, workers=1, show_progress=False)
        except PackError:
            bar.update(1)
            return None
        packed = open_packed(Path(folder) / "packed").train
        costs, _ = loading_costs(
            packed, torch.device("cpu"), resolutions, seconds, bar, loaders=["roi"], augmentation=augmentation
        )
        return PackingGain(len(packed), tuple(costs), float(packed.sizes.mean()), float(chosen.sizes.mean()))
