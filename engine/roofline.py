"""How fast images can be trained on at best, what sets that limit, and how many workers reach it.

The model is operational analysis: an image spends so many seconds of each resource, and the busiest resource bounds the
rate of all (P. J. Denning and J. P. Buzen, "The Operational Analysis of Queueing Network Models", ACM Computing Surveys
10(3), 1978: the asymptotic bounds). Shown as ceilings beside each other it is a roofline (S. Williams, A. Waterman and
D. Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures", Communications of the ACM
52(4), 2009). Stages of a loader share the cores, so that only the sum of their processor time matters, not how it is
spread over them.

Everything here is a pure function of a few measured numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

Resource = Literal["cores", "disk", "bus", "training", "workers"]
"""What an image takes a share of; ``training`` is the one process that augments and trains batch after batch."""

RESOURCES: tuple[Resource, ...] = get_args(Resource)

RESOURCE_NAMES: Mapping[Resource, str] = {
    "cores": "the processor",
    "disk": "the disk",
    "bus": "the way to the GPU",
    "training": "training by itself",
    "workers": "the number of workers",
}

Limit = Literal["cores", "workers", "disk", "bus", "augmentation", "model"]
"""What sets the limit, as the doctor predicts it and the verdict finds it."""

LIMIT_NAMES: Mapping[Limit, str] = {
    "cores": "the processor",
    "workers": "the number of workers",
    "disk": "the disk",
    "bus": "the way to the GPU",
    "augmentation": "augmentation",
    "model": "the model",
}

_EQUAL = 1e-9  # relative difference of two ceilings that is an error of rounding
AUGMENTATION_WORTH_TELLING = 0.25  # of the training process's time; below, a lighter preset changes little


@dataclass(frozen=True)
class Machine:
    """What one process can use.

    Attributes:
        cores: processor cores, above 0; parts of a core count (``loaders.cores.usable_cores``).
        disk: bytes per second read from where the files lie, by all together; infinite where they are in memory.
        disk_latency: seconds that a worker waits for a file besides, which workers do at the same time.
        bus: bytes per second copied to the device; infinite where nothing is copied.
    """

    cores: float
    disk: float = math.inf
    bus: float = math.inf
    disk_latency: float = 0.0

    def __post_init__(self) -> None:
        if not (self.cores > 0 and self.disk > 0 and self.bus > 0):
            raise ValueError(f"cores, disk and bus must be above 0, got {self}")
        if not 0 <= self.disk_latency < math.inf:
            raise ValueError(f"a disk's latency must be finite and not below 0, got {self}")

    def shared_by(self, ranks: int) -> Machine:
        """Return the part of each of so many processes of one job: of cores and disk; each device has a bus."""
        return replace(self, cores=self.cores / ranks, disk=self.disk / ranks)


@dataclass(frozen=True)
class Demand:
    """What one image takes.

    Attributes:
        cpu_seconds: processor time of loading it, by stage.
        disk_bytes: bytes read.
        bus_bytes: bytes copied to the device.
        step_seconds: time of normalization and training step, over the batch size, with all cores or the device to
            themselves.
        step_cpu_seconds: processor time of the same, which loading then has to do without; near 0 where a device
            computes.
        augment_seconds: time of augmentation, which the training process does before each step; 0 where a device
            augments, as part of the step.
        augment_cpu_seconds: its processor time.
    """

    cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    disk_bytes: float = 0.0
    bus_bytes: float = 0.0
    step_seconds: float = 0.0
    step_cpu_seconds: float = 0.0
    augment_seconds: float = 0.0
    augment_cpu_seconds: float = 0.0

    def __post_init__(self) -> None:
        steps = (self.step_seconds, self.step_cpu_seconds, self.augment_seconds, self.augment_cpu_seconds)
        others = (self.disk_bytes, self.bus_bytes, *steps)
        if not all(0 <= value < math.inf for value in (*self.cpu_seconds.values(), *others)):
            raise ValueError(f"what an image takes must be finite and not below 0, got {self}")

    @property
    def loading_cpu_seconds(self) -> float:
        return math.fsum(self.cpu_seconds.values())

    @property
    def training_seconds(self) -> float:
        """What the training process does with an image, one thing after the other."""
        return self.augment_seconds + self.step_seconds

    @property
    def training_cpu_seconds(self) -> float:
        return self.augment_cpu_seconds + self.step_cpu_seconds


@dataclass(frozen=True)
class Roofline:
    """The ceilings of the rate, in images per second; infinite for what is not needed."""

    ceilings: Mapping[Resource, float]

    @property
    def bound(self) -> Resource:
        """The resource with the lowest ceiling; of equals, the first in the order of RESOURCES.

        Workers come last: where they are just as many as are needed, what they are needed for is the limit.
        """
        rate = self.rate
        return next(resource for resource in RESOURCES if self.ceilings[resource] <= rate * (1 + _EQUAL))

    @property
    def rate(self) -> float:
        """The highest rate that all resources allow, images per second."""
        return min(self.ceilings.values())

    @property
    def headroom(self) -> dict[Resource, float]:
        """How many times the rate each resource would allow: 1 for the bound, infinite for what is not needed."""
        rate = self.rate
        if math.isinf(rate):
            return dict.fromkeys(self.ceilings, 1.0)
        return {resource: ceiling / rate for resource, ceiling in self.ceilings.items()}

    @property
    def next_bound(self) -> Resource:
        """The resource that would bound the rate if the present bound were lifted."""
        return min((r for r in RESOURCES if r != self.bound), key=lambda resource: self.ceilings[resource])


def roofline(machine: Machine, demand: Demand, num_workers: int | None = None) -> Roofline:
    """Return the ceilings of training on images.

    Workers load ahead while the training process works, so that the slower of the two sets the rate: workers, of whom
    each reads and decodes one image at a time, or training, in which augmentation and step take turns. Both need
    processor time, of which there is no more than the cores have. The rate falls short of these bounds by what batches
    wait for each other, least where one ceiling is well below the others.

    Args:
        machine: what there is.
        demand: what an image takes.
        num_workers: workers of the loader; 0 for the training process loading itself, None for enough.
    """
    in_worker = _seconds_in_worker(machine, demand)
    if num_workers is None:
        workers = math.inf
    elif num_workers == 0:
        workers = _ratio(1.0, in_worker + demand.training_seconds)
    else:
        workers = _ratio(num_workers, in_worker)
    return Roofline(
        {
            "cores": _ratio(machine.cores, demand.loading_cpu_seconds + demand.training_cpu_seconds),
            "workers": workers,
            "disk": _ratio(machine.disk, demand.disk_bytes),
            "bus": _ratio(machine.bus, demand.bus_bytes),
            "training": _ratio(1.0, demand.training_seconds),
        }
    )


def limit_of(demand: Demand, bound: Resource) -> Limit:
    """Say what sets the limit where a resource bounds the rate: whoever uses most of what loading and training share.

    It is augmentation rather than the model from where a lighter one would show.
    """
    trains = bound == "training" or (bound == "cores" and demand.training_cpu_seconds > demand.loading_cpu_seconds)
    if bound != "training" and not trains:
        return bound
    telling = demand.augment_seconds >= AUGMENTATION_WORTH_TELLING * demand.training_seconds
    return "augmentation" if telling and demand.augment_seconds else "model"


def workers_needed(machine: Machine, demand: Demand) -> int:
    """Return the fewest workers that do not hold the rate back, at least 1 and at most the cores.

    By Little's law the images being loaded at a rate are that rate times the seconds that one of them takes. With a
    slow model these are few, and more workers would only take memory and get in its way.
    """
    most = max(1, math.floor(machine.cores))
    wanted = roofline(machine, demand).rate * _seconds_in_worker(machine, demand)
    if not wanted < most:  # or not a number: nothing takes any time
        return most if wanted >= most else 1
    return max(1, math.ceil(wanted * (1 - _EQUAL)))  # a rounding error is no worker


def _seconds_in_worker(machine: Machine, demand: Demand) -> float:
    """Return how long one image occupies a worker: its processor time and, while nothing else reads, the disk's."""
    waiting = machine.disk_latency if demand.disk_bytes else 0.0
    return demand.loading_cpu_seconds + waiting + demand.disk_bytes / machine.disk


def _ratio(capacity: float, demand: float) -> float:
    return capacity / demand if demand > 0 else math.inf
