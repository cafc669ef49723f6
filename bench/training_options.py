"""Options that benchmarks of whole training runs share, and those of ``engine.train`` that they come to."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import torch

from bench.options import not_negative, positive
from engine.command import load_config
from engine.model import auto_model
from engine.setup import open_images


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add what all runs of a benchmark have in common."""
    add = parser.add_argument
    add("--data", default="demo", help="a folder, demo, or a known data set's name")
    add("--model", help="network; without it the one that engine.train takes for the largest size")
    add("--batch-size", type=positive, default=64, help="images of a batch")
    add("--amp", choices=("auto", "bf16", "fp16", "off"), default="auto", help="number format")
    add("--limit-train", type=not_negative, default=0, help="use so many training images, drawn by the seed; 0: all")
    add("--limit-val", type=not_negative, default=0, help="use so many validation images, drawn by the seed; 0: all")
    add("--threads", type=not_negative, default=0, help="threads of PyTorch on the CPU; 0: by the cores")
    add("--num-workers", type=not_negative, help="processes or threads of a loader; without it by the cores")
    add("--options", type=shlex.split, default="", help="further options of engine.train, in one pair of quotes")
    add("--output", type=Path, metavar="DIR", help="keep the runs here, and go on with those that are there")


def model_for(resolutions: Iterable[int], options: argparse.Namespace) -> str:
    """Return the model that engine.train takes for the largest of these sizes."""
    return auto_model(max(resolutions), torch.device(options.device))


def engine_arguments(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the options of engine.train that all runs have."""
    folder = Path(options.data).expanduser()
    workers = "auto" if options.num_workers is None else str(options.num_workers)
    named = {
        "model": options.model,
        "batch-size": options.batch_size,
        "amp": options.amp,
        "limit-train": options.limit_train,
        "limit-val": options.limit_val,
        "threads": options.threads,
        "num-workers": workers,
        "device": options.device,
    }
    pairs = chain(*((f"--{name}", str(value)) for name, value in named.items()))
    return (str(folder.resolve()) if folder.is_dir() else options.data, *pairs, *options.options)


def check_runs(runs: Iterable[Sequence[str]]) -> None:
    """Refuse before the first run what engine.train would refuse.

    Args:
        runs: the options of each; all of them read the same data.

    Raises:
        ConfigError: an option; the message says what to change.
        DataError: there are no such data.
    """
    configs = [load_config(list(options)) for options in runs]
    for config in configs[:1]:
        open_images(config)
