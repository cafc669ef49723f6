"""The page of benchmarks: tables in Markdown, and sections that are replaced between their marks."""

from __future__ import annotations

import importlib
import shlex

import pytest

from bench.document import PAGE, SECTIONS, fill
from bench.tables import Sheet


def test_a_section_is_replaced_and_the_rest_kept() -> None:
    page = "before <!-- a -->old<!-- /a --> between <!-- b -->kept<!-- /b --> after"
    assert fill(page, "a", "new") == "before <!-- a -->\n\nnew\n\n<!-- /a --> between <!-- b -->kept<!-- /b --> after"


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="the page has no <!-- a -->"):
        fill("<!-- a --> never closed", "a", "new")


def test_the_page_has_a_place_for_each_section() -> None:
    page = PAGE.read_text()
    for name in SECTIONS:
        assert "new" in fill(page, name, "new")


@pytest.mark.parametrize("name", SECTIONS)
def test_sections_have_arguments_that_their_programs_take(name: str) -> None:
    section = SECTIONS[name]
    assert importlib.import_module(f"bench.{section.program}").parse(shlex.split(section.arguments))


def test_tables_in_markdown() -> None:
    assert Sheet("Rates", ("loader", "images/s"), [["torch", "7"]]).markdown().splitlines() == [
        "**Rates**",
        "",
        "| loader | images/s |",
        "| :-- | --: |",
        "| torch | 7 |",
    ]
