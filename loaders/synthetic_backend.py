"""No data at all: the same random pixels for every batch of a size. What is left of a run's time is the model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from loaders.bad_samples import BadSamples
from loaders.contract import Batch, Loader
from loaders.dataset import ImageDataset
from loaders.plan import EpochPlan


class SyntheticLoader(Loader):
    """Delivers the plan's labels and indices with pixels drawn once for each batch shape."""

    name = "synthetic"
    layout = "NHWC"

    def __init__(self, datasets: Sequence[ImageDataset], bad_samples: BadSamples, device: torch.device) -> None:
        super().__init__(datasets, 0, bad_samples)
        self.device = device
        self._pixels: dict[tuple[int, int], torch.Tensor] = {}

    def run(self, plan: EpochPlan) -> Iterator[Batch]:
        for batch in plan:
            shape = (len(batch), batch.resolution)
            if shape not in self._pixels:
                size = (len(batch), batch.resolution, batch.resolution, 3)
                generator = torch.Generator(self.device).manual_seed(plan.seed)
                self._pixels[shape] = torch.randint(
                    0, 256, size, dtype=torch.uint8, device=self.device, generator=generator
                ).permute(0, 3, 1, 2)
            labels = torch.from_numpy(plan.dataset.labels[batch.indices])
            yield Batch(self._pixels[shape], labels, torch.from_numpy(batch.indices), batch.keys, batch)

    def close(self) -> None:
        self._pixels.clear()
