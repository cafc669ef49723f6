"""How the script of a benchmark ends: with what it found, with one line that says what is wrong, or when stopped."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence

from bench.measure import CellError
from bench.options import stopped
from bench.reports import Report, check_files, print_reports
from bench.resources import describe_machine
from bench.training_runs import RunError
from bench.variants import PREPARATION_ERRORS
from engine.values import ConfigError
from engine.weights import ModelError
from loaders.bad_samples import BadSampleError, TooManyBadSamplesError

_FILES = (BadSampleError, TooManyBadSamplesError)
ERRORS = (*PREPARATION_ERRORS, *_FILES, CellError, ConfigError, ModelError, OSError, RunError)  # their messages say all


def run_program(
    options: argparse.Namespace,
    run: Callable[[argparse.Namespace], Sequence[Report]],
    is_wrong: Callable[[Sequence[Report]], bool] = lambda reports: False,
) -> int:
    """Run a benchmark and print what it has found.

    Args:
        options: its command line's, with ``json``, ``csv`` and ``html``.
        run: measures, writes the files and returns the reports.
        is_wrong: whether the reports show something that must not be.

    Returns:
        The exit code: 0; 1 after an error or where something is wrong; 130 when stopped by Ctrl-C or terminated.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, ends what was started
    try:
        check_files(options)  # before anything takes long
        reports = run(options)
    except ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(stopped(options), file=sys.stderr)
        return 130
    print_reports(reports, describe_machine())
    return int(is_wrong(reports))
