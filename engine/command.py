"""The command line: arguments to a checked configuration."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from engine.config import AugmentConfig, Config
from engine.toml import read_toml
from engine.validation import validate
from engine.values import option

PROGRAM = "python -m engine.train"


@dataclass(frozen=True)
class _CommandLine:
    """Train an image classifier on a folder of images, and report on it."""

    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    file: Annotated[Path | None, tyro.conf.arg(name="config"), option(metavar="FILE", unset="none")] = None
    """Take the options from this TOML file, for example a run's config.toml; the command line goes before it."""


def load_config(argv: Sequence[str] | None = None) -> Config:
    """Return the configuration: the defaults, changed by ``--config FILE``, changed by the command line.

    A preset of augmentation on the command line also drops the single augmentation options of the file.

    Args:
        argv: arguments without the program's name; those of this process if None.

    Raises:
        ConfigError: the file or the configuration as a whole cannot be used.
        SystemExit: help was asked for (code 0), or an argument is unknown or malformed (code 2, after a message).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    first_pass = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first_pass.add_argument("--config", nargs="?", type=Path)
    first_pass.add_argument("--augment", nargs="?")
    given, _ = first_pass.parse_known_args(arguments)
    defaults = read_toml(given.config, Config()) if given.config else Config()
    if given.augment:
        defaults = replace(defaults, augment=AugmentConfig())
    parsed = tyro.cli(
        _CommandLine,
        prog=PROGRAM,
        args=arguments,
        default=_CommandLine(defaults),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff),
        console_outputs=os.environ.get("RANK", "0") == "0",  # set by torchrun; one process speaks for all
    )
    validate(parsed.config)
    return parsed.config


def fail(message: object) -> NoReturn:
    """Print ``error: message`` as one line and end the process with code 2."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    raise SystemExit(2)
