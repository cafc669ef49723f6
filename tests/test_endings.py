"""Ends of files: what is whole passes, what is cut off anywhere does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loaders.dataset import StringColumn
from loaders.endings import end_properly
from tests.images import photo


def look(*paths: Path) -> list[bool]:
    return end_properly(StringColumn.of(map(str, paths)), np.arange(len(paths))).tolist()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
def test_cut_off_files_are_seen(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    photo(60, 40).save(whole)
    data = whole.read_bytes()
    cut = []
    for length in (*range(1, len(data) - 1, max(1, len(data) // 40)), len(data) - 1):
        cut.append(tmp_path / f"{length}.{suffix}")
        cut[-1].write_bytes(data[:length])
    assert look(whole, *cut) == [True, *[False] * len(cut)]


def test_other_files_are_left_to_be_decoded(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("this is no image at all")
    photo(60, 40).save(tmp_path / "more.jpg")
    (tmp_path / "more.jpg").write_bytes((tmp_path / "more.jpg").read_bytes() + b"behind the picture")
    assert (
        look(tmp_path / "empty.jpg", tmp_path / "text.png", tmp_path / "more.jpg", tmp_path / "none.jpg") == [False] * 4
    )
