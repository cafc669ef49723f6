"""The loaders for one's own training loop, Lightning's or a Hugging Face Trainer's: an iterable of tensors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributed as dist

from kernels.device import Color
from loaders.augment import PRESETS, Augmentation
from loaders.bad_samples import BadSamples, Policy
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset
from loaders.plan import EpochPlan, View
from loaders.registry import create_loader
from loaders.transfer import DeviceBatch, Transfer

if TYPE_CHECKING:
    from loaders.transforms import EngineSplit
    from loaders.transforms.planner import Reorder

logger = logging.getLogger("headrace")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageLoader:
    """Iterates over batches of a data set, an epoch at a time.

    Each iteration yields ``(images, targets)``: images (n, 3, resolution, resolution), normalized, channels_last, on
    the device; targets int64 (n,) class numbers or, where mixup or CutMix is on, float32 (n, num_classes) shares.
    Every iteration is an epoch of its own, drawn anew, also after one that was left early; ``set_epoch`` chooses one,
    as with torch's DistributedSampler. Resolution and batch size may be set between epochs at no cost.

    A transform list of torchvision's is followed with its own distributions, but not by calling it: its crops, resizes
    and the first flip become windows that the backend decodes, whatever their place in the list, and everything else is
    done to whole batches on the device, where functions of your own are called for each image (loaders.transforms).
    What is done where is logged, to ``headrace``.

    Args:
        dataset: what to iterate over, as from ``open_data(...).train``.
        resolution: side of the images, pixels; None for what the transform list makes.
        batch_size: over all ranks.
        train: shuffle and augment; otherwise file order and centered crops, or what the transform list says.
        augment: a preset of loaders.augment, an Augmentation, or a transform list: a torchvision ``Compose`` of either
            version, a list of transforms, or a Program or Plan of loaders.transforms.
        loader: a backend of loaders.registry.
        num_workers: processes or threads; None for one for each usable core.
        device: where the batches go.
        reorder: what may change where operations of a transform list change places: nothing ("off"), nothing beyond
            rounding ("exact"), or pixels at edges and where values clip, and bilinear may stand for bicubic ("approx").
        mean, std: of the normalization, for pixels in 0..1; None for the transform list's, which without a Normalize
            leaves them in 0..1, whether it converts or not, or, without such a list, for ImageNet's.
        dtype: of the images.
        seed: of everything drawn.
        drop_last: leave out the last training batch of an epoch when it is not full.
        on_bad_sample: what a file that cannot be decoded does.
        max_bad_fraction: more bad files than this fraction end the epoch.
        rank, world: this process's share; None for what torch.distributed says.

    Raises:
        ValueError: an option is out of range; or the transform list cannot be followed (SplitError).
    """

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        resolution: int | None = None,
        batch_size: int = 64,
        train: bool = True,
        augment: str | Augmentation | Any = "light",
        reorder: Reorder = "exact",
        loader: str = "torch",
        num_workers: int | None = None,
        device: torch.device | str = "cpu",
        mean: Color | None = None,
        std: Color | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        drop_last: bool = False,
        on_bad_sample: Policy = "skip",
        max_bad_fraction: float = 0.01,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self.dataset = dataset
        self.batch_size = batch_size
        self.train = train
        if isinstance(augment, str) and augment not in PRESETS:
            raise ValueError(f"there is no augmentation preset {augment!r}; choose one of {', '.join(PRESETS)}")
        self._follows_list = not isinstance(augment, str | Augmentation)
        if isinstance(augment, str | Augmentation):
            if resolution is None:
                raise ValueError("give a resolution: only a transform list says how large images become")
            self.augmentation = PRESETS[augment] if isinstance(augment, str) else augment
            self.resolution = resolution
        else:
            if reorder not in ("off", "exact", "approx"):
                raise ValueError(f"reorder is off, exact or approx, not {reorder!r}")
            split = _split(augment, dataset, reorder)
            if mean is None and std is None and split.mean is None:
                logger.info("no Normalize among the transforms: pixels are in 0..1")
            self.augmentation = split.augmentation
            mean = mean or split.mean or (0.0, 0.0, 0.0)
            std = std or split.std or (1.0, 1.0, 1.0)
            self.resolution = resolution or split.resolution
        self.seed = seed
        self.drop_last = drop_last
        self.rank = rank if rank is not None else dist.get_rank() if distributed else 0
        self.world = world if world is not None else dist.get_world_size() if distributed else 1
        self._upcoming = (0, 0)  # epoch and batch that the next iteration starts at
        self._reached = (0, 0)  # epoch and batch after the one last yielded
        self.bad_samples = BadSamples(on_bad_sample, max_bad_fraction)
        workers = max(1, int(usable_cores())) if num_workers is None else num_workers
        self._loader = create_loader(loader, (dataset,), workers, self.bad_samples, device)
        self._transfer = Transfer(torch.device(device), mean or IMAGENET_MEAN, std or IMAGENET_STD, dtype=dtype)

    def _plan(self, epoch: int, start_batch: int) -> EpochPlan:
        if self.train:
            view = self.augmentation.view(self.resolution, self.batch_size, drop_last=self.drop_last)
        elif self._follows_list:
            view = replace(self.augmentation.view(self.resolution, self.batch_size), shuffle=False)
        else:
            view = View.evaluation(self.resolution, self.batch_size)
        return EpochPlan(self.dataset, epoch, view, self.seed, self.rank, self.world, start_batch)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._plan(0, 0).num_batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through, from its start."""
        self._upcoming = self._reached = (epoch, 0)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        epoch, start_batch = self._upcoming
        self._reached, self._upcoming = self._upcoming, (epoch + 1, 0)
        plan = self._plan(epoch, start_batch)
        augmentation = self.augmentation if self.train or self._follows_list else None
        for batch in self._transfer.batches(self._loader.run(plan), augmentation=augmentation):
            last = batch.plan.step + 1 == plan.num_batches
            self._reached = (epoch + 1, 0) if last else (epoch, batch.plan.step + 1)
            yield batch.images, self._targets(batch)

    def _targets(self, batch: DeviceBatch) -> torch.Tensor:
        if batch.other_labels is None or batch.weight is None:
            return batch.labels
        shares = torch.zeros(len(batch), len(self.dataset.classes), device=batch.labels.device)
        shares.scatter_add_(1, batch.labels[:, None], batch.weight[:, None])
        return shares.scatter_add_(1, batch.other_labels[:, None], 1 - batch.weight[:, None])

    def state_dict(self) -> dict[str, Any]:
        """Return where the iteration stands: the batch after the one last yielded."""
        return {
            "epoch": self._reached[0],
            "next_batch": self._reached[1],
            "resolution": self.resolution,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "data": self.dataset.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken: the next iteration yields the same batches from there.

        Raises:
            ValueError: the state is of other data.
        """
        if state["data"] != self.dataset.fingerprint:
            raise ValueError(f"the state is of other data than {self.dataset.name}: images, labels or sizes differ")
        self._upcoming = self._reached = (state["epoch"], state["next_batch"])
        self.resolution, self.batch_size, self.seed = state["resolution"], state["batch_size"], state["seed"]

    def close(self) -> None:
        """Release worker processes, threads and memory."""
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _split(transforms: Any, dataset: ImageDataset, reorder: Reorder) -> EngineSplit:
    """Split a transform list for images of a data set, and log who does what.

    No order of it is sought: what is dear, decoding and resizing, has its place, and on the device costs hardly differ.
    """
    from loaders.transforms import Plan, Program, describe, read_compose  # imports those of torchvision
    from loaders.transforms.engine_split import split_by_mode

    program = transforms if isinstance(transforms, Program | Plan) else read_compose(transforms)
    split = split_by_mode(program, reorder, dataset.common_size, 'reorder="{}"')
    for line in describe(split):
        logger.info("%s", line)
    return split
