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
        self._runs = 0

    def run(self, plan: EpochPlan) -> Iterator[Batch]:
        self._runs += 1
        return self._deliver(plan, self._runs)

    def _deliver(self, plan: EpochPlan, current: int) -> Iterator[Batch]:
        for batch in plan:
            if current != self._runs:
                raise RuntimeError("this epoch has ended: the loader was closed or another epoch was started")
            labels = torch.from_numpy(plan.dataset.labels[batch.indices])
            images = self._images(len(batch), batch.resolution, plan.seed)
            yield Batch(images, labels, torch.from_numpy(batch.indices), batch.keys, batch)

    def _images(self, count: int, resolution: int, seed: int) -> torch.Tensor:
        shape = (count, resolution)
        if shape not in self._pixels:
            generator = torch.Generator(self.device).manual_seed(seed)
            size = (count, resolution, resolution, 3)
            pixels = torch.randint(0, 256, size, dtype=torch.uint8, device=self.device, generator=generator)
            self._pixels[shape] = pixels.permute(0, 3, 1, 2)
        return self._pixels[shape]

    def close(self) -> None:
        self._runs += 1
        self._pixels.clear()
