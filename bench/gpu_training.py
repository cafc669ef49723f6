"""A plain training step for the GPU benchmark: torchvision's ResNets in bfloat16 and channels_last."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchvision
from torch.nn import functional

from bench.gpu_process import Job

DTYPE = torch.bfloat16
_NUM_CLASSES = 1000


class Trainee:
    """A model with what trains it.

    Args:
        name: of a classifier of torchvision.
        job: names the device.
        compiled: compile the model, for each size anew.
    """

    def __init__(self, name: str, job: Job, compiled: bool = False) -> None:
        torch.backends.cudnn.benchmark = True  # as engine.train sets it
        torch.manual_seed(0)
        self.device = torch.device(job.device)
        model = torchvision.models.get_model(name, weights=None, num_classes=_NUM_CLASSES)
        model = model.to(self.device, memory_format=torch.channels_last).train()
        self._optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
        backend = "eager" if job.is_shadow else "inductor"  # in the shadow only what surrounds the compiler runs
        self._forward: Callable[[torch.Tensor], torch.Tensor] = (
            torch.compile(model, dynamic=False, backend=backend) if compiled else model
        )

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Train on a batch; nothing waits for the device."""
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, DTYPE):
            logits = self._forward(images)
        functional.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        self._optimizer.step()

    def random_batch(self, batch_size: int, resolution: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and labels that mean nothing, on the device."""
        images = torch.randn(batch_size, 3, resolution, resolution, device=self.device).to(
            DTYPE, memory_format=torch.channels_last
        )
        return images, torch.arange(batch_size, device=self.device) % _NUM_CLASSES
