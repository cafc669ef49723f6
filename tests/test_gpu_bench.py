"""The GPU benchmark: sections that fail cost only themselves, and its shadow on a CPU finds every path right."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from bench import gpu
from bench.gpu_process import (
    Check,
    Entry,
    Failure,
    Job,
    LeftOut,
    Reporter,
    Row,
    SectionResult,
    UnavailableError,
    run_module,
    run_section,
)
from bench.gpu_regions import cut_region, needed_box
from bench.gpu_report import Document, shown
from bench.gpu_turns import Images, Turns, rates, ratio
from bench.measure import Spread
from tests.folders import image_folder
from tests.packed_photos import opened

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {
    "good": "report.check('all is well', True, '1 of 1')\n    report.row('Rates', loader='one', images_per_second=7)",
    "raises": "report.row('Rates', loader='one', images_per_second=7)\n    raise ValueError('no such luck')",
    "crashes": "report.check('so far', True, '')\n    os._exit(11)",
    "missing": "import no_such_module",
    "hangs": """child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    report.row("Processes", own=os.getpid(), child=child.pid)
    time.sleep(600)""",
}


@pytest.fixture
def sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write modules that the sections' processes can import; return their folder."""
    for name, body in SECTIONS.items():
        text = f"import os, subprocess, sys, time\n\n\ndef run(job, report):\n    {body}\n"
        (tmp_path / f"section_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def job(seconds: float = 60.0, data: str = "demo") -> Job:
    return Job("cpu", data, 4, 1, seconds)


def ran(name: str, seconds: float = 60.0) -> SectionResult:
    return run_section(name, partial(run_module, f"section_{name}"), job(seconds))


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"process {pid} is still there"
            time.sleep(0.05)


def test_a_section_reports(sections: Path) -> None:
    result = ran("good")
    assert result.status == "done"
    assert result.is_good
    assert result.entries == [
        Check("all is well", True, "1 of 1"),
        Row("Rates", {"loader": "one", "images_per_second": 7}),
    ]


def test_what_a_failing_section_found_is_kept(sections: Path) -> None:
    result = ran("raises")
    assert result.status == "failed"
    assert not result.is_good
    found, failure = result.entries
    assert found == Row("Rates", {"loader": "one", "images_per_second": 7})
    assert isinstance(failure, Failure)
    assert "no such luck" in failure.error


def test_a_crash_is_told_by_its_code(sections: Path) -> None:
    result = ran("crashes")
    assert (result.status, result.is_good) == ("failed", False)
    assert result.entries == [Check("so far", True, ""), Failure("crashes", "its process ended with code 11")]


def test_what_is_not_installed_is_left_out(sections: Path) -> None:
    result = ran("missing")
    assert (result.status, result.is_good) == ("done", True)
    (entry,) = result.entries
    assert isinstance(entry, LeftOut)
    assert "no_such_module" in entry.why


def test_a_section_that_hangs_ends_with_all_it_started(sections: Path) -> None:
    result = ran("hangs", seconds=4)
    assert (result.status, result.is_good) == ("stopped at its deadline", False)
    (row,) = result.entries
    assert isinstance(row, Row)
    for pid in row.values.values():
        wait_until_gone(int(str(pid)))


def test_the_rest_goes_on(sections: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    order = ["crashes", "raises", "good"]
    monkeypatch.setattr(gpu, "SHARES", dict.fromkeys(order, 1.0))
    monkeypatch.setattr(gpu, "SECTIONS", {name: partial(run_module, f"section_{name}") for name in order})
    files = ["--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")]
    data = image_folder(tmp_path / "data", train=3, val=3)
    assert gpu.main(["--data", str(data), "--minutes", "1", "--sections", ",".join(order), *files]) == 1
    record = json.loads((tmp_path / "out.json").read_text())
    assert [(section["name"], section["status"]) for section in record["sections"]] == [
        ("crashes", "failed"),
        ("raises", "failed"),
        ("good", "done"),
    ]
    page = (tmp_path / "out.md").read_text()
    assert "no such luck" in page
    assert "| one | 7 |" in page
    assert "passed: all is well (1 of 1)" in page


def test_the_files_are_whole_when_the_benchmark_is_killed(sections: Path, tmp_path: Path) -> None:
    file, data = tmp_path / "out.json", image_folder(tmp_path / "data", train=3, val=3)
    script = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(sections)!r}]
from functools import partial
from bench import gpu
if __name__ == "__main__":
    gpu.SHARES = {{"hangs": 1.0}}
    gpu.SECTIONS = {{"hangs": partial(gpu.run_module, "section_hangs")}}
    gpu.main(["--data", {str(data)!r}, "--minutes", "5", "--sections", "hangs", "--json", {str(file)!r}])
"""
    (tmp_path / "script.py").write_text(script)
    process = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], stderr=subprocess.DEVNULL)
    rows: list[dict[str, dict[str, int]]] = []
    deadline = time.monotonic() + 60
    while not rows and time.monotonic() < deadline:
        time.sleep(0.1)
        if file.exists():
            (section,) = json.loads(file.read_text())["sections"]  # valid whenever it is looked at
            rows = section["rows"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (section,) = json.loads(file.read_text())["sections"]
    assert section["status"] == "running"
    for pid in section["rows"][0]["values"].values():
        wait_until_gone(pid)


def test_without_data_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--data", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_a_part_that_fails_costs_only_itself() -> None:
    entries: list[Entry] = []
    report = Reporter(entries.append, seconds=60)

    def fail() -> None:
        raise ZeroDivisionError

    def unavailable() -> None:
        raise UnavailableError("there is none")

    assert not report.attempt("one", fail)
    assert not report.attempt("two", unavailable)
    assert not report.attempt("three", fail, needs=100)
    assert report.attempt("four", partial(report.row, "Rates", loader="one"))
    assert [type(entry) for entry in entries] == [Failure, LeftOut, LeftOut, Row]


def test_cells_take_turns_and_one_that_fails_is_dropped() -> None:
    entries: list[Entry] = []
    order: list[str] = []

    def cell(name: str, good_batches: int) -> Images:
        for _ in range(good_batches):
            order.append(name)
            yield 3
        raise RuntimeError("worn out")

    def broken() -> Iterator[int]:
        raise UnavailableError("not here")

    cells = {"a": partial(cell, "a", 99), "b": partial(cell, "b", 2), "c": broken}
    found = rates(cells, Turns(0.0, 3), job(), Reporter(entries.append, 60))  # type: ignore[arg-type]
    assert list(found) == ["a"]
    assert len(found["a"]) == 3
    assert order[:3] == ["a", "b", "a"]
    assert [type(entry) for entry in entries] == [LeftOut, Failure]
    assert ratio([2.0, 6.0], [1.0, 2.0]) == Spread(2.5, 2.0, 3.0)


def test_values_are_shown_with_three_digits() -> None:
    values = [12345.6, 99.26, 0.01234, 7, "text", Spread(1000.4, 9.876, 2000.0)]
    assert [shown(value) for value in values] == ["12346", "99.3", "0.0123", "7", "text", "1000 (9.88-2000)"]


def test_a_document_without_results_is_a_page() -> None:
    document = Document("python bench/gpu.py", "a machine", True)
    assert document.is_good
    assert "CPU shadow" in document.markdown()


def test_cut_regions_are_jpegs_of_what_they_say(packed_set: Path) -> None:
    dataset, random = opened(packed_set), np.random.default_rng(0)
    cuts = 0
    for index in range(len(dataset)):
        record = dataset.record(index)
        whole = np.asarray(luma(record))
        height, width = whole.shape
        for _ in range(6):
            share = random.uniform(0.1, 1, 2)
            window = np.array([*(random.uniform(0, 1 - share)), *share])
            box = needed_box(window, width, height, 64)
            cut = cut_region(record, dataset.restart_index(index), box)
            if cut is None:
                continue
            cuts += 1
            left, top, right, bottom = cut.box
            assert left <= box[0] < box[2] <= right <= width
            assert top <= box[1] < box[3] <= bottom <= height
            assert np.array_equal(luma(cut.jpeg), whole[top:bottom, left:right])
    assert cuts > 100


def luma(jpeg: np.ndarray) -> np.ndarray:
    image = Image.open(io.BytesIO(jpeg.tobytes()))
    image.draft("YCbCr", image.size)
    return np.asarray(image)[:, :, 0]


def test_without_restart_markers_nothing_is_cut() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48)).save(buffer, "JPEG")
    record = np.frombuffer(buffer.getvalue(), np.uint8)
    assert cut_region(record, np.empty(0, np.uint32), (0, 0, 8, 8)) is None


def test_the_shadow_finds_every_path_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    data = image_folder(tmp_path / "data", train=12, val=6, side=60)
    file = tmp_path / "out.json"
    code = gpu.main(["--data", str(data), "--minutes", "3", "--sections", "correctness", "--json", str(file)])
    record = json.loads(file.read_text())
    (section,) = record["sections"]
    assert code == 0, section
    assert record["shadow"]
    assert section["status"] == "done"
    assert len(section["checks"]) >= 2
    assert all(check["passed"] for check in section["checks"])
