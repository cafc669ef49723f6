"""All that the doctor found out, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.doctor_data import DataFacts, Duplicates
from engine.doctor_machine import Capacity, Component, DiskRate
from engine.doctor_packing import PackingGain
from engine.doctor_pixels import PixelFacts
from engine.doctor_rates import LoadingCost, Prediction
from engine.doctor_steps import StepCost

WORTH_TELLING = 1.1  # times the rate: what gains less is no advice
_IMBALANCE_WORTH_TELLING = 5.0
_SHARED_MEMORY = 1 << 30  # bytes that worker processes fill quickly


@dataclass(frozen=True)
class Findings:
    """What was found out; parts that were not asked for or could not be had are None or empty.

    Attributes:
        components: what is installed.
        capacity: what the machine has.
        disk: how fast the set's files can be read.
        model: name of the model that was measured; empty for none.
        default_resolutions: that training would take.
        augment: preset that the images were augmented with.
        costs, steps: what an image takes.
        failures: why loaders were left out, by name.
        predictions: the rate to expect at each size.
        packing: what some images cost when they are packed.
        packed_predictions: the rate to expect of the set packed.
        facts, duplicates, pixels: what the set is made of.
    """

    components: tuple[Component, ...]
    capacity: Capacity
    disk: DiskRate | None
    model: str
    default_resolutions: tuple[int, ...]
    augment: str
    costs: tuple[LoadingCost, ...]
    failures: Mapping[str, str]
    steps: tuple[StepCost, ...]
    predictions: tuple[Prediction, ...]
    packing: PackingGain | None
    packed_predictions: tuple[Prediction, ...]
    facts: DataFacts
    duplicates: Duplicates
    pixels: PixelFacts | None

    def usable(self, name: str) -> bool:
        """Say whether the component of that name can be used."""
        return any(component.usable for component in self.components if component.name == name)

    @property
    def bad_files(self) -> tuple[tuple[str, str], ...]:
        """Path and reason of every file that is known to be unreadable, each once."""
        decoded = self.pixels.bad if self.pixels else ()
        return tuple(dict([*decoded, *self.facts.unreadable]).items())

    def record(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON: what is infinite is null."""
        plain: dict[str, Any] = {name: _plain(value) for name, value in vars(self).items()}
        for name in ("predictions", "packed_predictions"):
            for row, prediction in zip(plain[name], getattr(self, name), strict=True):
                row |= {
                    "images_per_second": prediction.ceilings.rate,
                    "limit": prediction.limit,
                    "images_per_second_from_disk": prediction.from_disk.rate,
                    "limit_from_disk": prediction.limit_from_disk,
                }
        plain["advice"] = advice(self)
        return plain


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def advice(findings: Findings) -> list[str]:
    """Return what to do, most useful first: what makes results wrong, then what costs most speed, then the rest."""
    faster = sorted(_faster(findings), key=lambda suggestion: -suggestion[0])
    return [*_wrong(findings), *(text for _, text in faster), *_other(findings)]


def _wrong(findings: Findings) -> Iterator[str]:
    """Yield what makes results wrong."""
    duplicates, facts = findings.duplicates, findings.facts
    if duplicates.across:
        one, other = duplicates.across[0]
        yield (
            f"Take what training and validation share, {count(len(duplicates.across), 'file')}, out of one of them: "
            f"accuracy comes out too high. First: {other} = {one}"
        )
    if findings.pixels and findings.pixels.near:
        first = findings.pixels.near[0]
        yield (
            f"Look at what is nearly the same in training and validation, {count(len(findings.pixels.near), 'image')}; "
            f"the same picture belongs into one of them. First: {first.val} ~ {first.train}"
        )
    if duplicates.conflicting:
        one, other = duplicates.conflicting[0]
        yield (
            f"Decide between the classes of files that are there twice, with a class each: "
            f"{count(len(duplicates.conflicting), 'pair')}. First: {one} = {other}"
        )
    if findings.bad_files:
        path, reason = findings.bad_files[0]
        yield (
            f"Repair or remove {count(len(findings.bad_files), 'file')} that cannot be decoded; training goes on with "
            f"others in their place. First: {path}: {reason}"
        )
    if findings.failures and not findings.costs:
        name, reason = next(iter(findings.failures.items()))
        yield f"Look at why no loader could be measured here. First: {name}: {reason}"
    for split, counts in (("training", facts.train_counts), ("validation", facts.val_counts)):
        empty = [name for name, images in zip(facts.classes, counts, strict=True) if not images]
        if empty and sum(counts):
            yield f"Add {split} images to {count(len(empty), 'class', 'classes')} without any. First: {empty[0]}"


def _faster(findings: Findings) -> Iterator[tuple[float, str]]:
    """Yield what makes training faster, each with the factor that it promises."""
    if not findings.predictions:
        return
    largest = max(findings.predictions, key=lambda prediction: prediction.resolution)
    limit = largest.limit
    yield from _other_loaders(largest)
    yield from _packing(findings, largest)
    yield from _smaller_sizes(findings, largest)
    if limit == "model":
        options = "--compile, a larger --batch-size" if findings.capacity.device != "CPU" else "a GPU"
        yield (
            1.0,
            f"At {largest.resolution} px the model is the limit: {options} or a smaller --model help, not workers",
        )
    if limit == "augmentation":
        share = largest.demand.augment_seconds / largest.demand.training_seconds
        yield (
            1 / (1 - share),
            f"At {largest.resolution} px augmentation is the limit, {100 * share:.0f} % of what training does on the "
            "processor: a lighter preset (--augment light) or a GPU helps, not workers",
        )
    if limit == "workers":
        yield largest.ceilings.headroom[largest.ceilings.next_bound], _more_workers(findings.capacity.cores, largest)
    if limit == "disk":
        yield (
            largest.ceilings.headroom[largest.ceilings.next_bound],
            "The set does not fit into memory and the disk is the limit: pack it with smaller images "
            "(python -m loaders.pack), or put it on a faster disk",
        )
    if limit == "bus":
        yield 1.0, "Copying to the GPU is the limit: --loader dali decodes there"
    if limit == "cores" and findings.capacity.device != "CPU" and not findings.usable("DALI"):
        yield 1.0, "The processor is the limit: DALI decodes on the GPU (pip install 'headrace[dali]')"
    if not findings.usable("libjpeg-turbo"):
        yield 1.0, "Install libjpeg-turbo (apt-get install libturbojpeg0): --loader roi decodes crops only"


def _more_workers(cores: float, prediction: Prediction) -> str:
    """Say what to do about too few workers. Without a number a run takes at most one for each core."""
    if prediction.num_workers < math.floor(cores):
        return (
            f"--num-workers {prediction.num_workers} is too few: without it as many are taken as make training faster"
        )
    return (
        f"{count(prediction.num_workers, 'worker')} at {prediction.resolution} px cannot keep {cores:g} cores busy: "
        "try a larger --num-workers"
    )


def _other_loaders(prediction: Prediction) -> Iterator[tuple[float, str]]:
    rates = prediction.by_loader
    slower = {name: rate for name, rate in rates.items() if rates[prediction.loader] >= WORTH_TELLING * rate}
    if slower:
        shown = ", ".join(f"{name} {rate:.0f}" for name, rate in slower.items())
        yield (
            rates[prediction.loader] / max(slower.values()),
            f"Use --loader {prediction.loader}: {rates[prediction.loader]:.0f} images/s at {prediction.resolution} px, "
            f"where others allow {shown}",
        )


def _smaller_sizes(findings: Findings, largest: Prediction) -> Iterator[tuple[float, str]]:
    """Yield what stages of equal length at each of the sizes promise, unless they are the default."""
    by_size = sorted(findings.predictions, key=lambda prediction: prediction.resolution)
    sizes = tuple(prediction.resolution for prediction in by_size)
    share = sum(largest.ceilings.rate / prediction.ceilings.rate for prediction in by_size) / len(by_size)
    if sizes != findings.default_resolutions and share * WORTH_TELLING <= 1:
        yield (
            1 / share,
            f"Train on small images first: --resolutions {','.join(map(str, sizes))} takes {100 * share:.0f} % of the "
            f"time of {largest.resolution} px throughout",
        )


def _packing(findings: Findings, largest: Prediction) -> Iterator[tuple[float, str]]:
    """Yield what packing promises at the largest size."""
    if findings.packing is None or not findings.packed_predictions:
        return
    packed = next(p for p in findings.packed_predictions if p.resolution == largest.resolution).ceilings.rate
    if packed >= WORTH_TELLING * largest.ceilings.rate:
        yield (
            packed / largest.ceilings.rate,
            f"Pack the set, once (--loader roi does it, or python -m loaders.pack): {packed:.0f} images/s in place of "
            f"{largest.ceilings.rate:.0f} at {largest.resolution} px, measured on {findings.packing.images} images",
        )


def processor_shares(prediction: Prediction) -> dict[str, float]:
    """Return what loading, augmentation and the step take of an image's processor time, as shares of it."""
    demand = prediction.demand
    parts = {
        "loading": demand.loading_cpu_seconds,
        "augmentation": demand.augment_cpu_seconds,
        "step": demand.step_cpu_seconds,
    }
    total = sum(parts.values())
    return {name: part / total if total else 0.0 for name, part in parts.items()}


def _other(findings: Findings) -> Iterator[str]:
    """Yield settings that follow from the machine and the set."""
    shared = findings.capacity.shared_memory
    if shared is not None and shared < _SHARED_MEMORY:
        yield (
            f"/dev/shm has {shared / 2**20:.0f} MiB left, through which --loader torch hands over batches: start the "
            "container with a larger --shm-size, or use another loader"
        )
    if findings.facts.imbalance >= _IMBALANCE_WORTH_TELLING:
        yield (
            f"The largest class has {findings.facts.imbalance:.0f} times the images of the smallest: "
            "--balanced-sampling or --class-weights effective, and look at recall by class"
        )
    if findings.duplicates.within_train:
        yield f"Copies of training files within training: {findings.duplicates.within_train:,}"


def count(number: int, noun: str, plural: str = "") -> str:
    """Write a number with its noun."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
