"""Ten thousand mutated JPEGs through the region loader's compiled code: no crash, no hang, nothing out of bounds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.jpeg import JpegLibraryError, load_library

try:
    load_library()
except JpegLibraryError as error:
    pytest.skip(str(error), allow_module_level=True)

RECORDS, SEED = 10_000, 0
ROOT = Path(__file__).parents[1]


def test_mutated_records_do_no_harm() -> None:
    command = [sys.executable, "-m", "tests.fuzz_regions", str(RECORDS), str(SEED)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    *numbers, last = ended.stdout.splitlines() or ["nothing"]
    assert ended.returncode == 0, (
        f"exit code {ended.returncode} at record {last}; to repeat: python -m tests.fuzz_regions 1 {SEED} {last}\n"
        + ended.stderr
    )
    assert len(numbers) == RECORDS
    counts = json.loads(last)
    print("\nMutated records that ended as", counts)
    assert sum(counts.values()) == RECORDS
    assert set(counts) == {"OK", "BAD", "UNSUPPORTED"}
    assert min(counts.values()) >= RECORDS // 50, "each often enough to mean something"


@pytest.mark.parametrize(("at_end", "offset"), [(True, 9), (False, -1)])
def test_pages_around_memory_end_the_process(at_end: bool, offset: int) -> None:
    """Otherwise the test above would show nothing."""
    program = (
        "import ctypes; from tests.fuzz_regions import Guarded; "
        f"memory = Guarded(5000).take(9, {at_end}); memory[:] = 1; "
        f"ctypes.string_at(memory.ctypes.data + {offset}, 1)"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert ended.returncode == -signal.SIGSEGV
