"""The GPU benchmark: sections that fail cost only themselves, and its shadow on a CPU finds every path right."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image
from tqdm import tqdm

from bench import gpu, gpu_accuracy, gpu_process, gpu_turns
from bench.gpu_process import (
    Check,
    Entry,
    Failure,
    Job,
    LeftOut,
    Reporter,
    Row,
    Section,
    SectionResult,
    UnavailableError,
    run_module,
    run_section,
    why_left_out,
)
from bench.gpu_regions import cut_region, needed_box
from bench.gpu_report import Document, shown
from bench.gpu_turns import Cell, Turns, rates, ratio
from bench.measure import Spread
from bench.peers import is_installed
from bench.variants import why_missing
from tests.folders import image_folder
from tests.packed_photos import opened

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {
    "good": "report.check('all is well', True, '1 of 1')\n    report.row('Rates', loader='one', images_per_second=7)",
    "raises": "report.row('Rates', loader='one', images_per_second=7)\n    raise ValueError('no such luck')",
    "crashes": "report.check('so far', True, '')\n    os._exit(11)",
    "missing": "raise ModuleNotFoundError('No module named ffcv', name='ffcv.loader')",
    "renamed": "from bench.gpu_process import no_such_name",
    "absent": "import bench.no_such_module",
    "times": "report.row('Times', left=report.remaining)",
    "writes": """(job.folder / "file").write_text("")
    report.row("Files", folder=str(job.folder))
    time.sleep(600)""",
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
    assert result.entries == [LeftOut("the section", "No module named ffcv")]


@pytest.mark.parametrize("name", ["renamed", "absent"])
def test_a_name_that_is_gone_from_the_project_is_a_failure(sections: Path, name: str) -> None:
    result = ran(name)
    assert (result.status, result.is_good) == ("failed", False)
    (entry,) = result.entries
    assert isinstance(entry, Failure)
    assert "no_such" in entry.error


def test_what_needs_an_optional_package_may_say_so_itself() -> None:
    def explained(cause: str) -> ImportError:
        error = ImportError("install it like this")
        error.__cause__ = ModuleNotFoundError(f"No module named {cause}", name=cause)
        return error

    assert why_left_out(explained("nvidia.dali")) == "install it like this"
    assert why_left_out(explained("loaders.gone")) is None
    assert why_left_out(ImportError("cannot import name")) is None
    assert why_left_out(UnavailableError("not here")) == "not here"


@pytest.mark.parametrize("path", sorted(ROOT.glob("bench/gpu*.py")), ids=lambda path: path.stem)
def test_every_module_of_it_can_be_imported(path: Path) -> None:
    module = importlib.import_module(f"bench.{path.stem}")
    assert path.stem.removeprefix("gpu_") not in gpu.SHARES or callable(module.run)


def test_a_sections_time_counts_from_before_its_imports(sections: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.monotonic
    monkeypatch.setattr(gpu_process, "time", SimpleNamespace(monotonic=lambda: clock() - 1000))  # in this process only
    (row,) = ran("times").entries
    assert isinstance(row, Row)
    left = row.values["left"]
    assert isinstance(left, float)
    assert left < 0


def test_what_a_section_wrote_is_gone_when_it_was_stopped(sections: Path) -> None:
    result = ran("writes", seconds=4)
    assert result.status == "stopped at its deadline"
    (row,) = result.entries
    assert isinstance(row, Row)
    assert not Path(str(row.values["folder"])).exists()


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
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # for what a killed benchmark leaves
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")], env=environment, stderr=subprocess.DEVNULL
    )
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
    report = Reporter(entries.append, time.monotonic() + 60)

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

    def cell(name: str, good_batches: int) -> Generator[list[int], None, None]:
        for _ in range(good_batches):
            order.append(name)
            yield [1, 2, 3]
        raise RuntimeError("worn out")

    def broken() -> Generator[list[int], None, None]:
        raise UnavailableError("not here")

    cells = {"a": Cell(partial(cell, "a", 99)), "b": Cell(partial(cell, "b", 5)), "c": Cell(broken)}  # type: ignore
    first, second, third = rates(cells, Turns(0.0, 3), job(), Reporter(entries.append, time.monotonic() + 60))
    assert (list(first), list(second), list(third)) == (["a", "b"], ["a"], ["a"])
    assert [len(found["a"]) for found in (first, second, third)] == [1, 2, 3]
    assert "".join(order).startswith("ab" + "aaa" + "bbb" + "aaa" + "b")
    assert [type(entry) for entry in entries] == [LeftOut, Failure]
    assert ratio([2.0, 6.0], [1.0, 2.0]) == Spread(2.5, 2.0, 3.0)


def test_no_round_is_begun_that_could_not_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def batches() -> Iterator[list[int]]:
        nonlocal now
        while True:
            now += 1
            yield [0]

    monkeypatch.setattr(gpu_turns, "time", SimpleNamespace(monotonic=lambda: now, perf_counter=lambda: now))
    monkeypatch.setattr(gpu_process, "time", SimpleNamespace(monotonic=lambda: now))
    cells = {"a": Cell(batches)}  # type: ignore[arg-type]
    report = Reporter(lambda entry: None, 100.0)
    a_round = 1 + 1 + 1  # batches: the lead-in's, the first, the turn's

    def rounds(total: float) -> int:
        return len(list(rates(cells, Turns(0.0, 5, total=total), job(), report)))

    assert rounds(1 + 3 * a_round) == 3
    assert rounds(3 * a_round) == 2
    assert rounds(0.0) == 1
    report = Reporter(lambda entry: None, now + 1 + 2 * a_round)
    assert rounds(1000.0) == 2


@pytest.mark.parametrize(("burst", "length"), [(1, 5), (4, 12), (8, 15)])
def test_a_turn_takes_what_lay_ready_first_and_lasts_whole_bursts(
    monkeypatch: pytest.MonkeyPatch, burst: int, length: int
) -> None:
    taken = 0
    used: list[int] = []

    def batches() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    def use(batch: int) -> int:
        used.append(batch)
        return 1

    monkeypatch.setattr(gpu_turns, "time", SimpleNamespace(monotonic=lambda: taken, perf_counter=lambda: taken))
    cells = {"a": Cell(batches, use, held=9, burst=burst)}  # type: ignore[arg-type]
    list(rates(cells, Turns(5.0, 1), job(), Reporter(lambda entry: None, time.monotonic() + 60)))
    opened, uncounted, *turn = used
    assert opened == 1
    assert uncounted == 11  # behind the nine that may have lain ready
    assert len(turn) == length


def test_a_later_row_of_the_same_name_takes_the_place_of_the_earlier_one() -> None:
    result = SectionResult("one", 1.0)
    report = Reporter(result.add, time.monotonic() + 60)
    for rate in (1, 2):
        report.update("Rates", loader="a", images_per_second=rate)
        report.update("Rates", loader="b", images_per_second=10 * rate)
        report.row("Sizes", loader="a", images_per_second=rate)
    assert [(row.table, *row.values.values()) for row in result.entries if isinstance(row, Row)] == [
        ("Rates", "a", 2),
        ("Rates", "b", 20),
        ("Sizes", "a", 1),
        ("Sizes", "a", 2),
    ]
    assert result.changes == 6


def test_what_is_left_out_takes_no_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: dict[str, float] = {}

    def note(name: str, section: Section, own: Job, notify: object) -> None:
        shares[name] = own.seconds

    monkeypatch.setattr(gpu, "run_section", note)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: 0.0))
    document = Document("python bench/gpu.py", "a machine", True)
    with tqdm(total=1, disable=True) as progress:
        gpu.measure_sections(gpu.SECTIONS, job(100.0), gpu.Keeper(document, None, None, progress))
    *_, last = shares
    assert last == "switch"
    assert shares[last] == pytest.approx(100.0)  # all that there is, as no time passes
    assert [(section.name, section.status) for section in document.sections] == [("accuracy", "left out")]


def train_by(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> list[Entry]:
    """Run a script in place of engine.train and return what is reported; it finds its run's folder in ``run``."""
    file = folder / "engine.py"
    head = (
        f"#!{sys.executable}",
        "import signal, sys, time",
        "from pathlib import Path",
        "run = Path(sys.argv[sys.argv.index('--output') + 1], 'run')",
        "run.mkdir()",
    )
    file.write_text("\n".join([*head, script]))
    file.chmod(0o755)
    monkeypatch.setattr(gpu_accuracy, "_ENDING_SECONDS", 1.0)
    monkeypatch.setattr(gpu_accuracy.sys, "executable", str(file))
    entries: list[Entry] = []
    report = Reporter(entries.append, time.monotonic() + 60)  # type: ignore[arg-type]
    part = partial(gpu_accuracy._train, "run", folder, [], 3.0, replace(job(), folder=folder), report)
    report.attempt("run", part)
    return entries


SUMMARY = "(run / 'summary.csv').write_text('epoch,top1,seconds\\n0,,2\\n1,40.5,3\\n')\n"
RESULT = '{"top1": 50.0, "epochs": 1, "seconds": 4.0, "reason": "SIGTERM", "verdict": "none"}'


def test_a_run_that_does_not_end_in_time_shows_its_epochs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = f"{SUMMARY}signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    (row,) = train_by(monkeypatch, tmp_path, script)
    assert isinstance(row, Row)
    assert list(row.values.values()) == ["run", 40.5, 2, 5.0, 3.0, "stopped when its time was over"]


def test_a_run_that_is_asked_to_end_shows_its_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = f"""
def end(*_):
    (run / "result.json").write_text('{RESULT}')
    sys.exit(130)

signal.signal(signal.SIGTERM, end)
{SUMMARY}time.sleep(60)
"""
    row, limit = train_by(monkeypatch, tmp_path, script)
    assert isinstance(row, Row)
    assert list(row.values.values()) == ["run", 50.0, 1, 4.0, 3.0, "SIGTERM"]
    assert limit == Row("What limited them", {"run": "run", "verdict": "none"})


def test_a_run_that_has_not_begun_in_time_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (entry,) = train_by(monkeypatch, tmp_path, "time.sleep(60)")
    assert isinstance(entry, LeftOut)
    assert "before its first epoch" in entry.why


def test_a_run_that_fails_shows_what_it_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (entry,) = train_by(monkeypatch, tmp_path, "print('no such luck', file=sys.stderr)\nsys.exit(3)")
    assert isinstance(entry, Failure)
    assert "ended with code 3:\nno such luck" in entry.error


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
    assert all(check["passed"] for check in section["checks"])
    formats = ("float32, planar", "float32, channels_last", "bfloat16, channels_last")
    expected = {f"training in {form} follows float32 on a CPU" for form in formats} | {
        "batches reach the device whole, planar, from ordinary memory",
        "batches reach the device whole, channels_last, from ordinary memory",
        "JPEG planes: the Triton kernel resamples as tensor operations do",
        "a compiled step is compiled once for each size, in its warm-up",
        "DALI decodes on the CPU what Pillow does, 32 px",
        "the region loader resamples on the device as on the host, 32 px",
        "flip, erase, mix and normalize: the Triton kernel gives what tensor operations give",
    }
    left_out = {"kernels compiled once", "steps without waits"}  # which take a GPU
    if not is_installed("peer:dali"):
        left_out.add("decoding, 32 px")
        expected.remove("DALI decodes on the CPU what Pillow does, 32 px")
    if why_missing("roi") is not None:
        left_out.add("resampling on the device, 32 px")
        expected.remove("the region loader resamples on the device as on the host, 32 px")
    assert {check["name"] for check in section["checks"]} == expected
    assert {entry["what"] for entry in section["left_out"]} == left_out
