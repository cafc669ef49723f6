"""The page of benchmarks: sections that are replaced between their marks, and that all of it is made by commands."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import document
from bench.charts import Bar, bar_chart
from bench.document import PAGE, fill, module_of, shown_command
from bench.document_sections import SECTIONS, Section
from bench.measure import CellError, Spread
from bench.page import Section as Shown
from bench.reports import Report
from bench.tables import Sheet

# Tables that nothing is measured for.
DESCRIPTIONS = (
    "peer | what it is",
    "loader | what it reads",
    "step | what it is",
)


def test_a_section_is_replaced_and_the_rest_kept() -> None:
    page = "before <!-- a -->old<!-- /a --> between <!-- b -->kept<!-- /b --> after"
    assert fill(page, "a", "new") == "before <!-- a -->\n\nnew\n\n<!-- /a --> between <!-- b -->kept<!-- /b --> after"


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="the page has no <!-- a -->"):
        fill("<!-- a --> never closed", "a", "new")


def test_tables_in_markdown() -> None:
    assert Sheet("Rates", ("loader", "images/s"), [["torch", "7"]]).markdown().splitlines() == [
        "**Rates**",
        "",
        "| loader | images/s |",
        "| :-- | --: |",
        "| torch | 7 |",
    ]


# The page of the project


def filled() -> dict[str, str]:
    """Return what stands between the marks, by section."""
    return dict(re.findall(r"<!-- ([\w-]+) -->(.*?)<!-- /\1 -->", PAGE.read_text(encoding="utf-8"), re.S))


def test_each_section_has_one_place_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert sorted(re.findall(r"<!-- ([\w-]+) -->", page)) == sorted(SECTIONS)
    assert set(filled()) == set(SECTIONS), "marks are closed and hold no other section"


def test_tables_and_pictures_are_made_by_commands() -> None:
    rest = PAGE.read_text(encoding="utf-8")
    for name in SECTIONS:
        rest = fill(rest, name, "")
    headings = re.findall(r"^\| ?(.*?) ?\|$\n\| ?:?-", rest, re.M)
    assert sorted(headings) == sorted(DESCRIPTIONS)
    assert "![" not in rest


def test_pictures_are_there_and_none_is_left_over() -> None:
    linked = {link for text in filled().values() for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)}
    there = {path.relative_to(PAGE.parent).as_posix() for path in (PAGE.parent / "images").glob("*.svg")}
    assert linked == there


@pytest.mark.parametrize("name", SECTIONS)
def test_a_filled_section_says_the_command_that_makes_it(name: str) -> None:
    if text := filled()[name].strip():
        assert text.splitlines()[0] == f"    {shown_command(SECTIONS[name], short=False)}".strip()
        assert len(re.findall(r"!\[", text)) <= len(SECTIONS[name].charts)
        assert re.search(r"^\d\d \w+ \d{4}: \d+ cores, ", text, re.M), "date and machine"


@pytest.mark.parametrize("short", [False, True], ids=["whole", "short"])
@pytest.mark.parametrize("name", SECTIONS)
def test_the_scripts_take_their_arguments(name: str, short: bool, tmp_path: Path) -> None:
    section = SECTIONS[name]
    options = document.parse(
        ["--page", str(tmp_path / "page.md"), "--imagenette", "demo", "--runs", str(tmp_path), *["--short"] * short]
    )
    parsed = module_of(section).parse(document.arguments_of(section, options))
    assert callable(module_of(section).run)
    if section.keeps_runs:
        assert parsed.output == tmp_path
    command = shlex.split(shown_command(section, short))
    module_of(section).parse([{"PHOTOS": "demo", "IMAGENETTE": "demo"}.get(word, word) for word in command[2:]])


# Making it


def program(run: Callable[[argparse.Namespace], list[Report]]) -> SimpleNamespace:
    return SimpleNamespace(parse=lambda argv: argparse.Namespace(argv=argv), run=run)


def report_on(options: argparse.Namespace) -> list[Report]:
    charts = [
        (f"Chart {number}", bar_chart([Bar("torch", Spread(2, 1, 3), 0)], title="t", unit="u")) for number in (1, 2)
    ]
    sheets = [Sheet(" ".join(options.argv), ("a", "b"), [["c", "1*"]])]
    shown = Shown("Title", ["A sentence."], charts, sheets)
    return [Report(sheets, [{"disturbed_rounds": 1}], shown, "a: what it is\n*: b"), Report([], [], Shown("Empty"))]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a page with three sections, the second of which cannot be made."""

    def fail(options: argparse.Namespace) -> list[Report]:
        raise CellError("torch: no memory")

    made = {"good": program(report_on), "bad": program(fail)}
    monkeypatch.setattr(document, "module_of", lambda section: made[section.program])
    sections = {
        "first": Section("good", "--x 1", "--x 0", charts=(1, 7)),
        "second": Section("bad", "", "", data=""),
        "third": Section("good", "", "", data="imagenette", charts=(), keeps_runs=True),
    }
    monkeypatch.setattr(document, "SECTIONS", sections)
    path = tmp_path / "docs" / "page.md"
    path.parent.mkdir()
    path.write_text("\n".join(f"<!-- {name} -->old<!-- /{name} -->" for name in sections))
    return path


def test_sections_are_written_with_their_pictures(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = page.parent / "images"
    images.mkdir()
    for name in ("first-1.svg", "first-2.svg", "first-more-1.svg"):
        (images / name).touch()
    arguments = ["--page", str(page), "--data", "photos", "--imagenette", "nette", "--runs", "kept"]
    assert document.main([*arguments, "--sections", "first,second,third"]) == 1
    said = capsys.readouterr().err
    assert "error: second is left as it was: torch: no memory" in said
    text = page.read_text()
    assert "<!-- second -->old<!-- /second -->" in text
    first, third = text.split("<!-- second -->")
    assert first.index("    python bench/good.py --data PHOTOS --x 1") < first.index("![Chart 2](images/first-1.svg)")
    for part in (
        "**--data photos --x 1**",
        "| c | 1* |",
        "- A sentence.",
        "- a: what it is",
        "- \\*: b",
        "\\*: in a turn",
    ):
        assert part in first
    assert "**--data nette --output kept**" in third
    assert "    python bench/good.py --data IMAGENETTE\n" in third
    assert {path.name for path in images.iterdir()} == {"first-1.svg", "first-more-1.svg"}
    assert (images / "first-1.svg").stat().st_size


def test_the_command_shows_what_was_measured_and_the_date_when() -> None:
    section = Section("good", "--x 1", "")
    commands = [shown_command(section, False, source) for source in ("demo", "cifar10", "/home/photos", None)]
    assert commands == [f"python bench/good.py --data {name} --x 1" for name in ("demo", "cifar10", "PHOTOS", "PHOTOS")]


def test_the_date_is_that_of_the_oldest_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(options: argparse.Namespace) -> list[Report]:
        days = date(2021, 5, 6), date(2020, 3, 4), None
        return [replace(report_on(options)[0], since=day) for day in days]

    monkeypatch.setattr(document, "module_of", lambda section: program(find))
    assert document.main(["--page", str(page), "--sections", "first"]) == 0
    assert "\n04 March 2020: " in page.read_text()
    assert "    python bench/good.py --data demo --x 1" in page.read_text()


def test_a_folder_that_is_not_named_is_asked_for(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert document.main(["--page", str(page), "--sections", "third"]) == 1
    assert "--imagenette is missing" in capsys.readouterr().err


def test_short_figures_do_not_get_into_the_page_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        document.parse(["--short"])
    assert "name a copy of the page" in capsys.readouterr().err


def test_what_was_finished_before_an_interrupt_is_kept(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    made = document.make
    monkeypatch.setattr(document, "make", lambda name, *rest: (made if name == "first" else interrupt)(name, *rest))
    assert document.main(["--page", str(page), "--sections", "first,third"]) == 130
    assert "<!-- first -->old" not in page.read_text()
