"""Loaders by name and variant, such as ``roi:keep``, and what they read, written into the cache beforehand.

A variant says in which form a loader has the images. The form is made in the process that starts a measurement and is
not part of any figure.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.bad_files import StopAtBad
from bench.peers import PEERS, is_installed
from kernels.jpeg import JpegLibraryError, load_library
from loaders.cache import cache_dir
from loaders.contract import Loader, LoaderError
from loaders.dataset import ImageData, ImageDataset
from loaders.opening import DataError
from loaders.pack_cache import cached_pack_path
from loaders.pack_images import find_jpegtran
from loaders.pack_job import pack
from loaders.pack_records import PackError, PackOptions
from loaders.pack_sources import source_of
from loaders.packed import PackedDataset
from loaders.registry import LOADER_NAMES, create_loader, workers_used

if TYPE_CHECKING:
    from loaders.ffcv_file import Storage

PREPARATION_ERRORS = (DataError, PackError, LoaderError, ImportError)

PLAIN = "roi:plain"  # the region loader on the files as they are
_PACKED = {
    "roi": PackOptions(max_side=500, quality=90),
    "roi:keep": PackOptions(keep=True),
    "roi:256": PackOptions(max_side=256, quality=90),
    "roi:renditions": PackOptions(max_side=500, quality=90, renditions=(320,)),
    "roi:renditions-256": PackOptions(max_side=500, quality=90, renditions=(256,)),
}
_RAW = ("ffcv:raw256", "peer:ffcv-raw256")  # of those that read a .beton file, the ones that read raw pixels
_BETON = ("ffcv", "peer:ffcv", *_RAW)

OWN_LOADERS = tuple(dict.fromkeys([*LOADER_NAMES, "ffcv", "ffcv:raw256", *_PACKED, PLAIN]))
USUAL_LOADERS = ("torch", "dali", "ffcv", "roi")


def split_name(name: str) -> tuple[str, str]:
    """Return a loader's name and its variant, empty for the usual one; a peer's name is a whole."""
    loader, _, variant = name.partition(":")
    return (name, "") if name in PEERS else (loader, variant)


def workers_of(name: str, asked: int) -> int:
    """Return how many processes or threads a loader or peer uses when it is asked for so many workers."""
    if name.startswith("peer:dali"):
        return max(1, asked)
    loader = "ffcv" if name in _BETON else "torch" if name in PEERS else split_name(name)[0]
    return workers_used(loader, asked)


def why_missing(name: str) -> str | None:
    """Return why a loader or peer cannot run here; None where it can."""
    loader, variant = split_name(name)
    if not is_installed(name if name in PEERS else f"peer:{loader}"):  # a peer needs the same library
        return f"what {name} needs is not installed"
    try:
        if loader in ("roi", "ffcv"):
            load_library()
        if variant == "keep":
            find_jpegtran()
    except (JpegLibraryError, PackError) as error:
        return str(error)
    return None


def prepare(name: str, data: ImageData, dataset: ImageDataset) -> Path | None:
    """Write what a loader or peer reads into the cache, unless it is there.

    Args:
        name: of the loader or peer.
        data: the data set.
        dataset: its training images as the loader will be given them.

    Returns:
        The folder of a packed set, to be opened by the process that reads it; None for a loader that is given
        ``dataset`` itself.

    Raises:
        DataError: the data set is packed, and the loader reads files or another form.
        PackError: it cannot be packed.
        LoaderError: there is no room for FFCV's file.
        ImportError: FFCV cannot be used.
    """
    if isinstance(data.train, PackedDataset):
        if name != "roi":
            raise DataError(f"{name} makes its own form of image files, and {data.name} is packed: use --loaders roi")
        return data.train.shards.folder
    show_progress = sys.stderr.isatty()
    if name in _BETON:
        from loaders.ffcv_file import open_beton

        open_beton(dataset, _storage(name), cache_dir(), show_progress)
    if name not in _PACKED:
        return None
    source, options = source_of(data), _PACKED[name]
    folder = cached_pack_path(source, options, cache_dir())
    pack(source, folder, options, show_progress=show_progress)
    return folder


def without_records(dataset: ImageDataset) -> ImageDataset:
    """Return what a data set lists, which other processes can be given: the addresses of records hold only here."""
    return ImageDataset(**{field.name: getattr(dataset, field.name) for field in fields(ImageDataset)})


def open_loader(name: str, dataset: ImageDataset, num_workers: int, device: torch.device) -> Loader:
    """Open one of our loaders, which raises at bad samples; for what it reads, see `prepare`."""
    loader, _ = split_name(name)
    bad_samples = StopAtBad()
    if loader != "ffcv":
        return create_loader(loader, [dataset], num_workers, bad_samples, device)
    from loaders.ffcv_backend import FfcvLoader

    return FfcvLoader([dataset], num_workers, bad_samples, device, storage=_storage(name), cache=cache_dir())


def _storage(name: str) -> Storage:
    from loaders.ffcv_file import JPEG_500, RAW_256

    return RAW_256 if name in _RAW else JPEG_500
