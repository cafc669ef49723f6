"""Functions in processes of their own: results, errors, and that nothing is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.measure import CellError
from bench.own_process import call_apart
from loaders.opening import DataError

ROOT = Path(__file__).resolve().parents[1]


def add(first: int, second: int) -> tuple[int, int]:
    return first + second, os.getpid()


def refuse() -> None:
    raise DataError("no images in photos")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work_for_long(folder: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    (folder / "part").write_text(f"{os.getpid()} {child.pid}")
    (folder / "part").rename(folder / "numbers")
    time.sleep(1000)


def test_results_and_errors_come_back() -> None:
    total, number = call_apart("adding", add, 1, second=2)
    assert total == 3 and number != os.getpid()
    with pytest.raises(DataError, match="no images in photos"):
        call_apart("refusing", refuse)
    assert not multiprocessing.active_children()


def test_one_that_is_killed_is_named() -> None:
    with pytest.raises(CellError, match="dali: its process ended with code -9"):
        call_apart("dali", die)


def test_it_ends_with_the_one_who_waits(tmp_path: Path) -> None:
    code = f"""
import argparse, pathlib, sys
from bench.own_process import call_apart
from bench.program import run_program
from tests.test_own_process import work_for_long

if __name__ == "__main__":
    options = argparse.Namespace(json=None, csv=None, html=None)
    sys.exit(run_program(options, lambda options: call_apart("long", work_for_long, pathlib.Path({str(tmp_path)!r}))))
"""
    (tmp_path / "program.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(tmp_path / "program.py")], env=environment) as waiting:
        while not (tmp_path / "numbers").exists():
            assert waiting.poll() is None
            time.sleep(0.05)
        waiting.terminate()
        assert waiting.wait(timeout=120) == 130
    for number in (tmp_path / "numbers").read_text().split():
        assert not psutil.pid_exists(int(number)) or psutil.Process(int(number)).status() == psutil.STATUS_ZOMBIE
