"""How the scripts of benchmarks end."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from bench import accuracy, training, transform_training, tuner
from bench.page import Section
from bench.program import run_program
from bench.reports import Report, write_reports
from bench.tables import Sheet
from loaders.opening import DataError

OPTIONS = argparse.Namespace(json=Path("out.json"), csv=None, html=None)
FOUND = Report([Sheet("Rates", ("loader", "images/s"), [["torch", "100"]])], [{"loader": "torch"}], Section("Rates"))


def find(options: argparse.Namespace) -> list[Report]:
    assert options is OPTIONS
    return [FOUND]


def test_what_was_found_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(OPTIONS, find) == 0
    shown = capsys.readouterr().out
    assert "torch" in shown and "100" in shown and "cores" in shown


def test_what_must_not_be_is_printed_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def is_wrong(reports: Sequence[Report]) -> bool:
        return list(reports) == [FOUND]

    assert run_program(OPTIONS, find, is_wrong) == 1
    assert "torch" in capsys.readouterr().out


@pytest.mark.parametrize("error", [DataError("no images in photos"), OSError("no images in photos")])
def test_an_error_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(options: argparse.Namespace) -> list[Report]:
        raise error

    assert run_program(OPTIONS, fail) == 1
    assert capsys.readouterr() == ("", "error: no images in photos\n")


def options_with(**files: Path) -> argparse.Namespace:
    return argparse.Namespace(command="python bench/x.py", **{"json": None, "csv": None, "html": None, **files})


@pytest.mark.parametrize("kind", ["json", "csv", "html"])
def test_files_that_cannot_be_written_are_refused_before_anything_is_measured(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(options: argparse.Namespace) -> list[Report]:
        raise AssertionError("nothing is measured")

    (tmp_path / "file").touch()
    assert run_program(options_with(**{kind: tmp_path}), refuse) == 1
    assert f"error: {tmp_path} is a folder" in capsys.readouterr().err
    assert run_program(options_with(**{kind: tmp_path / "file" / "out"}), refuse) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert run_program(options_with(**{kind: tmp_path / "new" / "out"}), lambda options: [FOUND]) == 0
    assert not list((tmp_path / "new").iterdir())


def test_what_was_measured_is_printed_though_a_file_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_with(json=tmp_path / "out.json", csv=tmp_path / "out.csv", html=tmp_path / "out.html")

    def find_too_late(options: argparse.Namespace) -> list[Report]:
        options.json.mkdir()
        write_reports(options, "Rates", [FOUND], "here")
        return [FOUND]

    assert run_program(options, find_too_late) == 0
    printed = capsys.readouterr()
    assert f"warning: {options.json} is not written" in printed.err
    assert "torch" in printed.out
    assert options.csv.is_file() and options.html.is_file()


def test_one_who_stops_it_learns_where_the_finished_part_is(capsys: pytest.CaptureFixture[str]) -> None:
    def stop(options: argparse.Namespace) -> list[Report]:
        raise KeyboardInterrupt

    assert run_program(OPTIONS, stop) == 130
    assert capsys.readouterr() == ("", "stopped; what was finished is in out.json\n")


def test_a_mistake_of_the_program_is_not_taken_for_one_of_the_user() -> None:
    def err(options: argparse.Namespace) -> list[Report]:
        raise KeyError("loader")

    with pytest.raises(KeyError):
        run_program(OPTIONS, err)


def test_one_that_is_terminated_ends_what_it_has_started() -> None:
    code = """
import argparse, subprocess, sys
from bench.program import run_program

def run(options):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) as started:
        try:
            print(started.pid, flush=True)
            started.wait()
        finally:
            started.kill()
            started.wait()

sys.exit(run_program(argparse.Namespace(json=None, csv=None, html=None), run))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        started = int(process.stdout.readline())
        process.terminate()
        assert process.wait(timeout=60) == 130
    assert not psutil.pid_exists(started)


@pytest.mark.parametrize("program", [accuracy, training, transform_training, tuner])
def test_missing_data_are_refused_before_the_first_run(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert program.main(["--data", str(tmp_path / "photos"), "--loaders", "torch"]) == 1
    assert f"{tmp_path / 'photos'} does not exist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
