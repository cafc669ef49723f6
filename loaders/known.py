"""Known data sets by name, downloaded once through torchvision."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from loaders.files import atomic_folder
from loaders.sources import TRAIN_NAMES, DataError, Source, find_in_folder, list_paths, split_source

_IMAGES_PER_TASK = 500
_TIMEOUT = 30.0  # seconds without an answer after which a server is given up


@dataclass(frozen=True)
class KnownSet:
    """How torchvision makes a data set.

    Attributes:
        dataset: class in ``torchvision.datasets``.
        train: arguments of the class for each part of the training set.
        val: arguments for the validation set; None when there is only one set, which is then split.
        urls: what it downloads.
        folder: where the downloads lie below the root it is given.
        as_files: its images are files, used in place; otherwise they are exported once as PNG files.
    """

    dataset: str
    train: tuple[dict[str, Any], ...]
    val: dict[str, Any] | None
    urls: tuple[str, ...]
    folder: str = ""
    as_files: bool = False


_TRAIN_FLAG: tuple[tuple[dict[str, Any], ...], dict[str, Any]] = (({"train": True},), {"train": False})
_SPLITS: tuple[tuple[dict[str, Any], ...], dict[str, Any]] = (({"split": "train"},), {"split": "test"})
_BOTH: tuple[tuple[dict[str, Any], ...], dict[str, Any]] = (
    ({"split": "train"}, {"split": "val"}),
    {"split": "test"},
)
_TRAINVAL: tuple[tuple[dict[str, Any], ...], dict[str, Any]] = (({"split": "trainval"},), {"split": "test"})


def _mnist(dataset: str, base: str) -> KnownSet:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return KnownSet(dataset, *_TRAIN_FLAG, tuple(f"{base}{name}-ubyte.gz" for name in names), f"{dataset}/raw")


def _imagenette(archive: str, size: str) -> KnownSet:
    url = f"https://s3.amazonaws.com/fast-ai-imageclas/{archive}.tgz"
    return KnownSet(
        "Imagenette", ({"split": "train", "size": size},), {"split": "val", "size": size}, (url,), as_files=True
    )


KNOWN_SETS: dict[str, KnownSet] = {
    "mnist": _mnist("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion-mnist": _mnist("FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
    "kmnist": _mnist("KMNIST", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"),
    "cifar10": KnownSet("CIFAR10", *_TRAIN_FLAG, ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",)),
    "cifar100": KnownSet("CIFAR100", *_TRAIN_FLAG, ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",)),
    "svhn": KnownSet(
        "SVHN",
        *_SPLITS,
        (
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        ),
    ),
    "stl10": KnownSet("STL10", *_SPLITS, ("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",)),
    "imagenette": _imagenette("imagenette2", "full"),
    "imagenette320": _imagenette("imagenette2-320", "320px"),
    "imagenette160": _imagenette("imagenette2-160", "160px"),
    "food101": KnownSet("Food101", *_SPLITS, ("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",), as_files=True),
    "flowers102": KnownSet(
        "Flowers102",
        *_BOTH,
        tuple(
            f"https://www.robots.ox.ac.uk/~vgg/data/flowers/102/{name}"
            for name in ("102flowers.tgz", "imagelabels.mat", "setid.mat")
        ),
        "flowers-102",
        as_files=True,
    ),
    "oxford-pets": KnownSet(
        "OxfordIIITPet",
        *_TRAINVAL,
        (
            "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
            "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
        ),
        "oxford-iiit-pet",
        as_files=True,
    ),
    "dtd": KnownSet(
        "DTD", *_BOTH, ("https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",), "dtd", as_files=True
    ),
    "fgvc-aircraft": KnownSet(
        "FGVCAircraft",
        *_TRAINVAL,
        ("https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",),
        as_files=True,
    ),
    "eurosat": KnownSet(
        "EuroSAT",
        ({},),
        None,
        (
            "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        ),
        "eurosat",
        as_files=True,
    ),
}


def find_known(name: str, cache: Path, val_fraction: float, seed: int, show_progress: bool = True) -> Source:
    """List a known data set, downloading it to ``cache/datasets/<name>`` when it is not there.

    Class folders that someone has put into ``cache/datasets/<name>`` (``train`` and ``val`` or ``test``) are used
    first. A set whose archive holds arrays is exported once as PNG files; the others are used where they lie.

    Raises:
        DataError: the set cannot be downloaded; the message says which files to put where.
    """
    home = cache / "datasets" / name
    if any((home / train).is_dir() for train in TRAIN_NAMES):
        return find_in_folder(home, val_fraction, seed, show_progress)
    known = KNOWN_SETS[name]
    exported = home / "images"
    if not known.as_files:
        if not exported.is_dir():
            with atomic_folder(exported) as temporary:
                _export(name, known, home, temporary, show_progress)
        return find_in_folder(exported, val_fraction, seed, show_progress)
    train = [_construct(name, known, home, arguments) for arguments in known.train]
    classes = tuple(map(_class_name, train[0].classes))
    train_listing = _list_files(name, train, home, show_progress)
    if known.val is None:
        return split_source(classes, train_listing, str(home), val_fraction, seed)
    val = [_construct(name, known, home, known.val)]
    return Source(classes, train_listing, _list_files(name, val, home, show_progress))


def _construct(name: str, known: KnownSet, home: Path, arguments: dict[str, Any]) -> Any:
    """Return the torchvision data set; one of files yields paths in place of images."""
    import torchvision  # takes a second; needed for known sets only

    root = home / "download"
    if known.as_files and known.dataset != "OxfordIIITPet":
        arguments = {**arguments, "loader": os.fspath}
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _network_timeout():
            return getattr(torchvision.datasets, known.dataset)(str(root), download=True, **arguments)
    except ImportError as error:
        raise DataError(f"reading {name} takes a package that is missing: pip install {error.name}") from error
    except Exception as error:  # torchvision passes on what urllib, tarfile and pickle raise
        reason = str(error).strip() or type(error).__name__
        raise DataError(
            f"{name} cannot be downloaded or read ({reason}). To use it offline, put "
            f"{' and '.join(known.urls)} into {root / known.folder}, or put class folders into {home / 'train'} and "
            f"{home / 'val'}"
        ) from error


@contextmanager
def _network_timeout() -> Iterator[None]:
    """Keep a silent server from blocking for ever; torchvision sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _class_name(name: Any) -> str:
    """Turn a torchvision class name (Imagenette: a tuple of synonyms; MNIST: "0 - zero") into a folder's name."""
    first = name if isinstance(name, str) else name[0]
    return first.split(" - ")[0].replace("/", "-")


def _list_files(name: str, parts: list[Any], home: Path, show_progress: bool) -> Any:
    samples: list[tuple[str, int]] = []
    for part in parts:
        if hasattr(part, "_images"):  # Oxford pets take no loader
            samples += zip(map(os.fspath, part._images), part._labels, strict=True)
        else:
            samples += (part[index] for index in range(len(part)))
    labels = np.array([label for _, label in samples], np.int64)
    listing, missing = list_paths((path for path, _ in samples), labels, show_progress)
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(samples)} files of {name} are missing, first {missing[0]}; unpacking may have "
            f"been cut short: remove the folders in {home / 'download'} (the archive can stay) and start again"
        )
    return listing


def _export(name: str, known: KnownSet, home: Path, folder: Path, show_progress: bool) -> None:
    """Write the images of a set held in arrays to ``folder/<split>/<class>/<number>.png``."""
    assert known.val is not None
    executor = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="export")
    try:
        tasks = {}
        for split, arguments in (("train", known.train[0]), ("val", known.val)):
            part = _construct(name, known, home, arguments)
            names = [_class_name(c) for c in getattr(part, "classes", map(str, range(10)))]
            for class_name in names:
                (folder / split / class_name).mkdir(parents=True)
            for start in range(0, len(part), _IMAGES_PER_TASK):
                indices = range(start, min(start + _IMAGES_PER_TASK, len(part)))
                tasks[executor.submit(_write_images, part, indices, names, folder / split)] = len(indices)
        with tqdm(
            total=sum(tasks.values()), desc=f"exporting {name}", unit=" images", disable=not show_progress, leave=False
        ) as bar:
            for task in as_completed(tasks):
                task.result()
                bar.update(tasks[task])
    finally:
        executor.shutdown(cancel_futures=True)


def _write_images(part: Any, indices: range, names: list[str], folder: Path) -> None:
    for index in indices:
        image, label = part[index]
        image.save(folder / names[label] / f"{index:05d}.png", compress_level=1)
