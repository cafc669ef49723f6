"""Other loaders in their own plain form, as their documentation shows them, on the same files and with the same crops.

Every peer is a generator that yields the images of one batch after another, without end, and releases everything when
it is closed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from bench.bad_files import unreadable
from loaders.bad_samples import BadSampleError
from loaders.cache import cache_dir
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset
from loaders.plan import EpochPlan, View

if TYPE_CHECKING:
    from loaders.ffcv_file import Storage

Output = Literal["uint8", "float32"]
Images = Generator[torch.Tensor, None, None]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
FLIP = 0.5


@dataclass(frozen=True)
class Work:
    """What a loader is to do.

    Attributes:
        dataset: the images.
        resolution: side of the images delivered, pixels.
        batch_size: images of a batch.
        num_workers: worker processes, or threads where the loader uses threads.
        output: ``uint8`` as the loader delivers it, or ``float32`` normalized and on the device.
        device: ``cpu`` or ``cuda``.
    """

    dataset: ImageDataset
    resolution: int
    batch_size: int
    num_workers: int
    output: Output
    device: str


class _Files(Dataset[tuple[torch.Tensor, int]]):
    """What torchvision's ImageFolder does for a sample, over a given list of files."""

    def __init__(self, work: Work, read: Callable[[str], Any], transform: Callable[[Any], torch.Tensor]) -> None:
        self.samples = list(zip(work.dataset.paths, work.dataset.labels.tolist(), strict=True))
        self.read = read
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.samples[index]
        try:
            return self.transform(self.read(path)), label
        except (OSError, RuntimeError, ValueError) as error:  # which do not always name the file
            raise BadSampleError(unreadable(path, error)) from error


def _data_loader(work: Work, dataset: Dataset[tuple[torch.Tensor, int]]) -> Images:
    cuda = work.output == "float32" and work.device != "cpu"
    loader = DataLoader(
        dataset,
        work.batch_size,
        shuffle=True,
        num_workers=work.num_workers,
        persistent_workers=work.num_workers > 0,
        pin_memory=cuda,
    )
    while True:
        for images, _ in loader:
            if cuda:
                images = images.to(work.device, non_blocking=True)
            yield images


def torchvision_pillow(work: Work) -> Images:
    """ImageFolder, RandomResizedCrop, RandomHorizontalFlip, ToTensor, Normalize in a DataLoader, decoded by Pillow."""
    operations: list[Any] = [
        transforms.RandomResizedCrop(work.resolution, SCALE, RATIO),
        transforms.RandomHorizontalFlip(FLIP),
    ]
    if work.output == "uint8":
        operations.append(transforms.PILToTensor())
    else:
        operations += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return _data_loader(work, _Files(work, default_loader, transforms.Compose(operations)))


def _read_tensor(path: str) -> torch.Tensor:
    return decode_image(path, ImageReadMode.RGB)


def torchvision_tensors(work: Work) -> Images:
    """The v2 transforms on uint8 tensors, decoded by torchvision.io, in a DataLoader."""
    operations: list[Any] = [
        v2.RandomResizedCrop(work.resolution, SCALE, RATIO, antialias=True),
        v2.RandomHorizontalFlip(FLIP),
    ]
    if work.output == "float32":
        operations += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return _data_loader(work, _Files(work, _read_tensor, v2.Compose(operations)))


def dali(work: Work) -> Images:
    """A DALI pipeline with its own file reader and random crops: decodes on the GPU where the device is one."""
    from nvidia.dali import fn
    from nvidia.dali.types import DALIImageType

    files, labels = list(work.dataset.paths), work.dataset.labels.tolist()

    def images() -> tuple[Any, Any]:
        encoded, _ = fn.readers.file(files=files, labels=labels, random_shuffle=True)
        cropped = fn.decoders.image_random_crop(
            encoded,
            device="mixed" if work.device != "cpu" else "cpu",
            output_type=DALIImageType.RGB,
            random_area=SCALE,
            random_aspect_ratio=RATIO,
        )
        return cropped, fn.random.coin_flip(probability=FLIP)

    return _dali_pipeline(work, images)


def dali_windows(work: Work) -> Images:
    """A DALI pipeline that is told files, windows and flips, drawn beforehand: what the loader ``dali`` has to do."""
    from nvidia.dali import fn
    from nvidia.dali.types import DALIDataType, DALIImageType

    dataset, size = work.dataset, work.batch_size
    plan = EpochPlan(dataset, 0, View(work.resolution, len(dataset), scale=SCALE, ratio=RATIO, flip=FLIP)).batch(0)
    sides = np.stack([dataset.heights, dataset.widths], 1)[plan.indices]
    anchors = np.rint(plan.windows[:, 1::-1] * sides).astype(np.int32)
    shapes = np.rint(plan.windows[:, 3:1:-1] * sides).astype(np.int32)
    flips = plan.flips.astype(np.int32)
    starts = itertools.cycle(range(0, len(dataset) - size + 1, size))

    def source() -> list[Any]:
        start = next(starts)
        batch = slice(start, start + size)
        paths = [dataset.paths.encoded(index) for index in plan.indices[batch].tolist()]
        return [paths, anchors[batch], shapes[batch], flips[batch]]

    def images() -> tuple[Any, Any]:
        path, anchor, shape, flip = fn.external_source(
            source=source,
            num_outputs=4,
            batch=True,
            dtype=[DALIDataType.UINT8, *[DALIDataType.INT32] * 3],
            ndim=[1, 1, 1, 0],
        )
        cropped = fn.decoders.image_slice(
            fn.io.file.read(path),  # type: ignore[attr-defined]
            anchor,
            shape,
            axes=[0, 1],
            normalized_anchor=False,
            normalized_shape=False,
            device="mixed" if work.device != "cpu" else "cpu",
            output_type=DALIImageType.RGB,
        )
        return cropped, flip

    return _dali_pipeline(work, images)


def _dali_pipeline(work: Work, images: Callable[[], tuple[Any, Any]]) -> Images:
    """Run a pipeline that resizes crops and flips them.

    Args:
        images: called within the definition; returns the crops and whether each is to be flipped.
    """
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.types import DALIDataType, DALIInterpType

    device_id: Any = torch.cuda.current_device() if work.device != "cpu" else None

    @pipeline_def(batch_size=work.batch_size, num_threads=max(1, work.num_workers), device_id=device_id, seed=0)
    def pipeline() -> Any:
        cropped, flip = images()
        resized: Any = fn.resize(
            cropped, size=[work.resolution] * 2, interp_type=DALIInterpType.INTERP_LINEAR, antialias=True
        )
        if work.output == "uint8":
            return fn.flip(resized, horizontal=flip)
        return fn.crop_mirror_normalize(
            resized,
            mirror=flip,
            dtype=DALIDataType.FLOAT,
            output_layout="CHW",
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
        )

    built = pipeline()
    built.build()
    while True:
        (delivered,) = built.run()
        yield torch.from_dlpack(delivered.as_tensor())


def ffcv(work: Work) -> Images:
    """FFCV on JPEGs of at most 500 pixels: RandomResizedCropRGBImageDecoder, RandomHorizontalFlip, from memory."""
    from loaders.ffcv_file import JPEG_500

    return _ffcv(work, JPEG_500)


def ffcv_raw(work: Work) -> Images:
    """The same on raw pixels, at most 256 on a side."""
    from loaders.ffcv_file import RAW_256

    return _ffcv(work, RAW_256)


def _ffcv(work: Work, storage: Storage) -> Images:
    """Run FFCV's own pipeline on the `.beton` file of the data set, which is written on first use."""
    from loaders.ffcv_file import open_beton  # before FFCV itself: says how to install it

    # isort: split
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Convert, NormalizeImage, RandomHorizontalFlip, ToDevice, ToTensor, ToTorchImage

    size = (work.resolution, work.resolution)
    mean, std = 255 * np.array(MEAN, np.float32), 255 * np.array(STD, np.float32)
    operations: list[Any] = [RandomResizedCropRGBImageDecoder(size, SCALE, RATIO), RandomHorizontalFlip(FLIP)]
    if work.output == "uint8":
        operations += [ToTensor(), ToTorchImage()]
    elif work.device == "cpu":
        operations += [NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage()]
    else:
        device = torch.device(work.device)
        operations += [ToTensor(), ToDevice(device), ToTorchImage(), Convert(torch.float32)]
        operations.append(transforms.Normalize(mean.tolist(), std.tolist()))
    loader = Loader(
        str(open_beton(work.dataset, storage, cache_dir()).path),
        batch_size=work.batch_size,
        num_workers=max(1, min(work.num_workers, int(usable_cores()))),
        os_cache=True,
        order=OrderOption.RANDOM,
        pipelines={"image": operations, "label": None},
    )
    while True:
        epoch = iter(loader)
        try:
            for (images,) in epoch:
                yield images
        finally:
            epoch.close()  # its thread ends when it has found the queue full for half a second
            epoch.join(2)  # and must not be in compiled code when the process ends


PEERS: dict[str, Callable[[Work], Images]] = {
    "peer:torchvision": torchvision_pillow,
    "peer:torchvision-v2": torchvision_tensors,
    "peer:dali": dali,
    "peer:dali-windows": dali_windows,
    "peer:ffcv": ffcv,
    "peer:ffcv-raw256": ffcv_raw,
}
_MODULES = {
    "peer:dali": "nvidia.dali",
    "peer:dali-windows": "nvidia.dali",
    "peer:ffcv": "ffcv",
    "peer:ffcv-raw256": "ffcv",
}


def is_installed(name: str) -> bool:
    """Return whether a peer can run here."""
    try:
        return name not in _MODULES or find_spec(_MODULES[name]) is not None
    except ModuleNotFoundError:  # the package that a module should be in
        return False
