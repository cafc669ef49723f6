"""Look at the machine and the data before training: ``python -m engine.doctor [DATA] [options]``."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm
from tyro.conf import Positional

from engine.command import fail
from engine.config import AugmentConfig, Config, ConfigError, LoaderName, Resolutions
from engine.defaults import resolution_ladder
from engine.distributed import DeviceError, Process, process
from engine.doctor_data import data_facts, exact_duplicates
from engine.doctor_findings import Findings
from engine.doctor_machine import capacity, components, disk_rate
from engine.doctor_packing import PackingGain, packing_gain
from engine.doctor_page import write_page
from engine.doctor_pixels import PixelFacts, pixel_facts
from engine.doctor_print import print_findings
from engine.doctor_rates import LOADER_FAILURES, LoadingCost, Prediction, loading_costs, predict, reason_of
from engine.doctor_steps import StepCost, step_costs
from engine.model import ModelError, auto_model, create_model
from engine.setup import augmentation_of
from engine.transforms import arrange, read_transforms
from engine.validation import validate
from engine.values import option
from loaders.choice import candidates
from loaders.contract import LoaderError
from loaders.dataset import ImageData
from loaders.files import atomic_file
from loaders.opening import DataError, open_data

USER_ERRORS = (ConfigError, DataError, DeviceError, ImportError, LoaderError, ModelError, OSError)

# Shares of the time that is given.
_DISK, _FILES, _LOADING, _PACKED, _TRAINING, _PIXELS = 0.05, 0.1, 0.25, 0.05, 0.1, 0.4


@dataclass(frozen=True)
class Options:
    """Say what is installed, what this machine can do, what a data set needs, what is odd in it, and what to do."""

    data: Annotated[Positional[str], option(metavar="DATA")] = "demo"
    """A folder of images or a packed set, demo, or the name of a known data set."""
    csv: Annotated[Path | None, option(metavar="FILE", unset="none")] = None
    """Take the images from this table with the columns path and label."""
    val_fraction: float = 0.1
    """Share of each class for validation, where the data come without a split."""
    resolutions: Annotated[Resolutions, option(unset="by the data")] = ()
    """Sizes to measure at, in pixels."""
    model: Annotated[str, option(metavar="auto|off|NAME")] = "auto"
    """Model to measure a training step of; off measures loading alone."""
    batch_size: Annotated[int, option("-b")] = 64
    """Images of a training step; of a model that takes long, fewer are measured."""
    loader: LoaderName = "auto"
    """Loader to measure; auto measures all that can read the set."""
    num_workers: Annotated[int | Literal["auto"], option("--workers", "-j", metavar="auto|N")] = "auto"
    """Predict the rate with so many workers (auto: as many as are enough)."""
    threads: int = 0
    """Threads of PyTorch that train on the CPU (0: by the cores)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N: what would train."""
    seconds: float = 30.0
    """Time for all measurements, about; what takes longer is done in part, and says so."""
    pixels: bool = True
    """Decode images for mean, deviation and near duplicates."""
    json: Annotated[Path | None, option(metavar="FILE", unset="none")] = None
    """Write everything to this file."""
    html: Annotated[Path | None, option(metavar="FILE", unset="none")] = None
    """Write a page with plots to this file."""
    augmentation: Annotated[AugmentConfig, tyro.conf.arg(name="")] = field(default_factory=AugmentConfig)

    @property
    def varied_by(self) -> str:
        """What varies the images: the name of a preset or of a file."""
        own = self.augmentation.transforms
        return self.augmentation.augment if own is None else own.name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    hide = (tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff)
    options = tyro.cli(Options, prog="python -m engine.doctor", args=argv, config=hide)
    try:
        run(options)
    except USER_ERRORS as error:
        fail(error)
    return 0


def run(options: Options) -> Findings:
    """Examine, print and write; return what was found.

    Raises:
        Exception: any of USER_ERRORS, whose message says what to do.
    """
    if not options.seconds > 0 or any(resolution < 1 for resolution in options.resolutions):
        raise ConfigError("--seconds must be above 0 and --resolutions at least 1")
    validate(Config(augment=options.augmentation))
    if options.num_workers != "auto" and options.num_workers < 0:
        raise ConfigError("--num-workers must be at least 0, or auto")
    if options.threads < 0 or options.batch_size < 1:
        raise ConfigError("--threads must be at least 0 and --batch-size at least 1")
    with process(options.device) as this:
        data = open_data(options.data, csv=options.csv, val_fraction=options.val_fraction)
        if not len(data.train):
            raise DataError(f"{data.name} has no training images")
        findings = examine(data, this, options)
    print_findings(findings)
    if options.json is not None:
        with atomic_file(options.json) as temporary:
            temporary.write_text(json.dumps(findings.record(), indent=2) + "\n", encoding="utf-8")
    if options.html is not None:
        write_page(options.html, findings)
    return findings


def examine(data: ImageData, this: Process, options: Options) -> Findings:
    """Measure and look, in about the time that is given."""
    device, augmentation = this.device, augmentation_of(options.augmentation)
    loaders = candidates(data.train, device) if options.loader == "auto" else [options.loader]
    num_workers = None if options.num_workers == "auto" else options.num_workers
    usual = resolution_ladder(data.train, device)
    if (own := read_transforms(options.augmentation)) is not None:
        arranged = arrange(own, Config(augment=options.augmentation), data.train, this)
        augmentation, usual = arranged.augmentation, (arranged.split.resolution,)
    sizes = tuple(sorted(set(options.resolutions or usual)))
    name = auto_model(max(sizes), device) if options.model == "auto" else options.model
    model = None if name == "off" else create_model(name, len(data.classes), resolution=max(sizes))
    seconds = options.seconds
    bar_format = "{desc}: {percentage:3.0f} % |{bar}| {elapsed} {postfix}"
    description = f"examining {data.name}"
    parts = 2 + ("roi" in loaders) + (model is not None) + options.pixels
    with tqdm(total=parts, desc=description, bar_format=bar_format, disable=None, leave=False) as bar:
        found = components()
        there = capacity(device)
        disk = disk_rate(data.train, _DISK * seconds)
        duplicates = exact_duplicates(data, _FILES * seconds, bar)
        packing: PackingGain | None = None
        if "roi" in loaders:  # before DALI is loaded, since when worker processes take longer to start
            packing = packing_gain(data.train, sizes, augmentation, _PACKED * seconds, bar)
        costs, failures = loading_costs(
            data.train, device, sizes, _LOADING * seconds, bar, loaders=loaders, augmentation=augmentation
        )
        steps: list[StepCost] = []
        if model is not None:
            steps = step_costs(
                model,
                data.train,
                this,
                sizes,
                augmentation,
                _TRAINING * seconds,
                bar,
                batch_size=options.batch_size,
                threads=options.threads,
            )
        pixels: PixelFacts | None = None
        if options.pixels:
            known = {path for _, path in duplicates.across}
            workers = max(1, int(there.cores))
            try:
                pixels = pixel_facts(data, _decoder(costs), workers, sizes[0], _PIXELS * seconds, bar, known=known)
            except LOADER_FAILURES as error:
                failures["the pass over the pixels"] = reason_of(error)
    images, mean_bytes = len(data.train), float(data.train.sizes.mean())
    packed: list[Prediction] = []
    if packing is not None:
        packed = predict(images, packing.mean_bytes, there, disk, packing.costs, steps, num_workers)
    return Findings(
        components=tuple(found),
        capacity=there,
        disk=disk,
        model="" if name == "off" else name,
        default_resolutions=usual,
        augment=options.varied_by,
        costs=tuple(costs),
        failures=failures,
        steps=tuple(steps),
        predictions=tuple(predict(images, mean_bytes, there, disk, costs, steps, num_workers)),
        packing=packing,
        packed_predictions=tuple(packed),
        facts=data_facts(data),
        duplicates=duplicates,
        pixels=pixels,
    )


def _decoder(costs: Sequence[LoadingCost]) -> str:
    """Return the loader to look at pixels with: the fastest that was measured and reads files, or the reference."""
    reading = [cost for cost in costs if cost.loader != "synthetic"]
    return min(reading, key=lambda cost: (cost.resolution, cost.cpu_seconds)).loader if reading else "torch"


if __name__ == "__main__":
    sys.exit(main())
