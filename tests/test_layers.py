"""Imports go down only, as pyproject.toml says: bench, engine, loaders, kernels."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
(CONTRACT,) = PROJECT["tool"]["importlinter"]["contracts"]
LAYERS: list[str] = CONTRACT["layers"]  # from the top


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and top-level package of every import, those within functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute, so that one sees where they lead"
            yield node.lineno, str(node.module).partition(".")[0]


def upward_imports(package: str, source: str) -> list[tuple[int, str]]:
    """Return the imports that lead to a layer above ``package``, or to the tests."""
    above = {*LAYERS[: LAYERS.index(package)], "tests"}
    return [(line, name) for line, name in imported(source) if name in above]


def test_every_package_is_a_layer() -> None:
    assert set(LAYERS) == {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}


def test_every_package_is_installed() -> None:
    folders = (path.parent.relative_to(ROOT) for layer in LAYERS for path in (ROOT / layer).rglob("__init__.py"))
    assert {".".join(folder.parts) for folder in folders} == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_down_only(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, name in upward_imports(package, path.read_text(encoding="utf-8"))
    ]
    assert not wrong


def test_an_import_upward_is_found() -> None:
    source = "import numpy\n\ndef late():\n    from engine.config import Config\n    import loaders.plan\n"
    assert upward_imports("kernels", source) == [(4, "engine"), (5, "loaders")]
    assert upward_imports("bench", source) == []
