"""Train an image classifier: ``python -m engine.train [DATA] [options]``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from engine.checkpoint import CheckpointError
from engine.command import fail, load_config
from engine.config import Config, ConfigError
from engine.defaults import initial_workers, resolve
from engine.distributed import DeviceError, Process, long_barrier, process
from engine.ending import finish
from engine.freezing import FreezeError
from engine.learner import NonFiniteLossError
from engine.model import ModelError
from engine.optim import OptimizerError
from engine.precision import PrecisionError
from engine.preview import print_plan
from engine.resume import Resumed, find, identity
from engine.rundir import RunDirectory, new_run_path
from engine.setup import augmentation_of, check_data, create_learner, limit, open_images, packed
from engine.stopping import EXIT_INTERRUPTED, stop_on_signals
from engine.telemetry import environment
from engine.trainer import Ending, OutOfMemoryError, Trainer
from engine.transform_costs import transform_costs
from engine.transforms import COPY, Arrangement, arrange, log_arrangement, normalization_for, read_transforms
from engine.validation import check_shares, validate
from loaders.bad_samples import BadSample, BadSampleError, BadSamples, TooManyBadSamplesError
from loaders.contract import LoaderError
from loaders.cores import usable_cores
from loaders.dataset import ImageData, ImageDataset
from loaders.opening import DataError
from loaders.pack_records import PackError
from loaders.registry import create_loader
from loaders.transforms.legality import Swap

logger = logging.getLogger("headrace")

USER_ERRORS = (
    BadSampleError,
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    FreezeError,
    ImportError,
    LoaderError,
    ModelError,
    NonFiniteLossError,
    OptimizerError,
    OSError,  # a folder that cannot be written, a full disk
    OutOfMemoryError,
    PackError,
    PrecisionError,
    TooManyBadSamplesError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 2 after a user's error, 75 after a signal that it saved on."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if os.environ.get("RANK", "0") != "0":
        logger.setLevel(logging.WARNING)
    try:
        config = load_config(with_resumed_options(list(sys.argv[1:] if argv is None else argv)))
        ending = train(config)
    except USER_ERRORS as error:
        fail(error)
    except KeyboardInterrupt:
        return 130
    return EXIT_INTERRUPTED if ending is not None and ending.interrupted else 0


def with_resumed_options(arguments: list[str]) -> list[str]:
    """Start from the options of the run that ``--resume PATH`` names, unless ``--config`` names others."""
    for number, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--resume":
            path = Path(value or "".join(arguments[number + 1 : number + 2])).expanduser()
            folder = path.parent if path.is_file() else path
            given = any(a == "--config" or a.startswith("--config=") for a in arguments)
            if (folder / "config.toml").exists() and not given:
                return ["--config", str(folder / "config.toml"), *arguments]
    return arguments


def train(config: Config, transforms: Any = None) -> Ending | None:
    """Train by a configuration; return how the run ended, or None if it was only planned.

    Args:
        config: what the command line says.
        transforms: how training images vary, in place of the presets: a torchvision Compose of either version, a list
            of transforms, or a Program (see loaders.transforms); None for what the configuration says.

    Raises:
        Exception: any of USER_ERRORS, whose message says what to do.
    """
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
    own = read_transforms(config.augment, transforms)
    with process(config.run.device) as this:
        data = _open(config, this)
        resumed = this.broadcast(find(config, data, own) if this.is_main else None)
        if resumed is not None:
            _warn_of_other_processes(resumed, this)
            config = resumed.config
        arranged = resolution = None
        if own is not None:
            state = resumed.state["identity"]["transforms"] if resumed is not None else None
            arranged = arrange(own, config, data.train, this, state)
            resolution = arranged.split.resolution
        config = _agreed(resolve(config, data.train, this, resolution), this)
        validate(config)
        check_data(config, data)
        check_shares(config, len(data.train), this.world)
        torch.set_num_threads(config.run.threads)
        torch.use_deterministic_algorithms(config.run.deterministic)
        torch.backends.cudnn.benchmark = not config.run.deterministic
        if config.run.plan:
            print_plan(config, data, this, arranged)
            return None
        return _run(config, data, this, resumed, arranged)


def _agreed(config: Config, this: Process) -> Config:
    """Return what rank 0 resolved, but for the threads of this machine."""
    agreed = this.broadcast(config)
    return replace(agreed, run=replace(agreed.run, threads=config.run.threads))


def _warn_of_other_processes(resumed: Resumed, this: Process) -> None:
    before, now = (resumed.config.run.device, resumed.state["world"]), (this.device.type, this.world)
    if before != now:
        logger.warning(
            "Resuming with a change: %d process(es) on %s -> %d on %s: sums are rounded in another order, and dropout "
            "and mixing draw other numbers",
            *(before[1], before[0], now[1], now[0]),
        )


def _first_before_others(this: Process, work: Callable[[bool], ImageData]) -> ImageData:
    """Let the first process of a machine work, and show its progress, before the others, which find it done."""
    with long_barrier(this.world) as barrier:
        for turn in (True, False):
            if turn == (this.local_rank == 0):
                data = work(turn)
            barrier()
    return data


def _open(config: Config, this: Process) -> ImageData:
    data = _first_before_others(this, partial(open_images, config))
    data = limit(data, config.data.limit_train, config.data.limit_val, config.run.seed)
    if any(other != identity(data) for other in this.gather(identity(data))):
        raise DataError("the processes see different images: every machine needs the same files at the same paths")
    logger.info(
        "Data: %s, %d training and %d validation images in %d classes",
        data.name, len(data.train), len(data.val), len(data.classes),
    )  # fmt: skip
    return data


def _run(
    config: Config, data: ImageData, this: Process, resumed: Resumed | None, arranged: Arrangement | None
) -> Ending:
    source = identity(data)
    augmentation = augmentation_of(config.augment)
    if arranged is not None:
        source |= {"transforms": arranged.state}
        augmentation = arranged.augmentation
    data = _first_before_others(this, partial(packed, config, data))
    learner, of_model = create_learner(config, data, this)
    run = _run_directory(config, resumed, arranged, data.train) if this.is_main else None
    try:
        csv_path = run.file("bad_samples.csv") if run else None
        bad_samples = BadSamples(config.loader.on_bad_sample, config.loader.max_bad_fraction, csv_path)
        if resumed is not None:
            bad_samples.load_state_dict([tuple(row) for row in resumed.state["bad_samples"]])
        for dataset in (data.train, data.val):
            bad_samples.record(
                dataset, (BadSample(dataset.name, i, dataset.paths[i], why) for i, why in dataset.problems.items())
            )
        loader = create_loader(
            config.loader.loader,
            (data.train, data.val),
            initial_workers(config, this.device, usable_cores(this.local_world)),
            bad_samples,
            this.device,
            config.loader.prefetch,
            config.data.cache,
            config.loader.roi_resample,
        )
        with loader, stop_on_signals() as stop, logging_redirect_tqdm():
            logger.info("Loader: %s", loader.describe())
            normalization = normalization_for(arranged, of_model, config.model.pretrained)
            trainer = Trainer(
                config, data, source, this, learner, augmentation, normalization, loader, run, stop, resumed
            )
            ending = trainer.fit()
            finish(trainer, ending)
        return ending
    finally:
        if run is not None:
            run.close()


def _run_directory(
    config: Config, resumed: Resumed | None, arranged: Arrangement | None, dataset: ImageDataset
) -> RunDirectory:
    if resumed is None:
        path = new_run_path(config.run.output, config.model.model, config.loader.loader, config.run.name)
        run = RunDirectory(path)
        logger.info("Run: %s", path)
    else:
        run = RunDirectory(resumed.path, resumed.position.epoch, resumed.position.steps)
        logger.info(
            "Run: %s, resumed at epoch %d, batch %d",
            resumed.path,
            resumed.position.epoch + 1,
            resumed.position.next_batch,
        )
    options = config.to_toml()
    if arranged is not None:
        done = arranged.done()
        measured = transform_costs(done, dataset) if done.swap is Swap.APPROX else None
        log_arrangement(arranged, config, measured)
        run.write_text("transforms.txt", arranged.text(measured) + "\n")
        if arranged.transforms.text:
            run.write_text(COPY, arranged.transforms.text)
        else:
            options = f"# Beside these options: transforms that were handed over, see transforms.txt.\n\n{options}"
    run.write_text("config.toml", options)
    run.write_json("env.json", environment())
    return run


if __name__ == "__main__":
    sys.exit(main())
