"""Other loaders in their own plain form, as their documentation shows them, on the same files and with the same crops.

Every peer is a generator that yields the images of one batch after another, without end, and releases everything when
it is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import default_loader
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from loaders.dataset import ImageDataset

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
        return self.transform(self.read(path)), label


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
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType

    cuda = work.device != "cpu"
    device_id: Any = torch.cuda.current_device() if cuda else None
    files, labels = list(work.dataset.paths), work.dataset.labels.tolist()

    @pipeline_def(
        batch_size=work.batch_size,
        num_threads=max(1, work.num_workers),
        device_id=device_id,
        seed=0,
    )
    def pipeline() -> Any:
        encoded, _ = fn.readers.file(files=files, labels=labels, random_shuffle=True)
        images: Any = fn.decoders.image_random_crop(
            encoded,
            device="mixed" if cuda else "cpu",
            output_type=DALIImageType.RGB,
            random_area=SCALE,
            random_aspect_ratio=RATIO,
        )
        images = fn.resize(images, size=[work.resolution] * 2, interp_type=DALIInterpType.INTERP_LINEAR, antialias=True)
        mirror = fn.random.coin_flip(probability=FLIP)
        if work.output == "uint8":
            return fn.flip(images, horizontal=mirror)
        return fn.crop_mirror_normalize(
            images,
            mirror=mirror,
            dtype=DALIDataType.FLOAT,
            output_layout="CHW",
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
        )

    built = pipeline()
    built.build()
    while True:
        (images,) = built.run()
        yield torch.from_dlpack(images.as_tensor())


PEERS: dict[str, Callable[[Work], Images]] = {
    "peer:torchvision": torchvision_pillow,
    "peer:torchvision-v2": torchvision_tensors,
    "peer:dali": dali,
}
