"""Finding data: folder layouts, CSV files, and the messages when something is wrong."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders import sources
from loaders.opening import DataError, open_unlabeled
from loaders.sources import find_in_folder, stratified_split
from tests.folders import make_classes, make_image, opened


@pytest.mark.parametrize("val_name", ["val", "valid", "validation", "test"])
def test_split_folders(tmp_path, val_name):
    make_classes(tmp_path / "set/train", {"b": 3, "a": 2})
    make_classes(tmp_path / "set" / val_name, {"b": 1, "a": 2})
    data = opened(tmp_path / "set", tmp_path)
    assert data.classes == ("a", "b") == data.val.classes
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.val.labels.tolist() == [0, 0, 1]
    assert (data.name, data.train.name, data.val.name) == ("set", "set/train", "set/val")
    assert data.train.paths[2] == str(tmp_path / "set/train/b/0.png")
    assert data.train.widths.tolist() == [6] * 5
    assert data.train.heights.tolist() == [4] * 5


def test_val_is_preferred_to_test(tmp_path):
    make_classes(tmp_path / "set/train", {"a": 1})
    make_classes(tmp_path / "set/test", {"a": 3})
    make_classes(tmp_path / "set/val", {"a": 2})
    assert len(opened(tmp_path / "set", tmp_path).val) == 2


def test_train_folder_alone_is_split(tmp_path):
    make_classes(tmp_path / "set/train", {"a": 10, "b": 10})
    data = opened(tmp_path / "set", tmp_path, val_fraction=0.2)
    assert data.classes == ("a", "b")
    assert data.val.class_counts().tolist() == [2, 2]


def test_files_lie_deeper_hidden_ones_and_other_kinds_are_passed_over(tmp_path, caplog):
    root = tmp_path / "set"
    for name in (
        "a/x/y/1.JPG",
        "a/2.jpeg",
        "a/3.webp",
        "b/4.BMP",
        "b/5.Png",
        ".hidden/6.png",
        "a/.7.png",
        "b/.c/8.png",
    ):
        make_image(root / name)
    (root / "a/notes.txt").write_text("no image")
    (root / "b/page.gif").write_bytes(b"GIF89a")
    with caplog.at_level("INFO", "headrace"):
        data = opened(root, tmp_path)
    found = [os.path.relpath(path, root) for split in (data.train, data.val) for path in split.paths]
    assert sorted(found) == ["a/2.jpeg", "a/3.webp", "a/x/y/1.JPG", "b/4.BMP", "b/5.Png"]
    assert "2 files that are not images are ignored" in caplog.text


def test_links_are_followed_but_not_in_circles(tmp_path):
    make_classes(tmp_path / "elsewhere", {"a": 3})
    make_classes(tmp_path / "set", {"b": 2})
    (tmp_path / "set/a").symlink_to(tmp_path / "elsewhere/a", target_is_directory=True)
    (tmp_path / "set/b/loop").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "set/b/nowhere.png").symlink_to(tmp_path / "missing.png")
    data = opened(tmp_path / "set", tmp_path)
    assert len(data.train) + len(data.val) == 6
    assert len(data.train.problems) + len(data.val.problems) == 1


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**64 - 1),
)
def test_stratified_split(counts, fraction, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    names = [f"{label}/{index}" for index, label in enumerate(labels)]
    chosen = stratified_split(labels, names, fraction, seed)
    for label, count in enumerate(counts):
        held_out = int(chosen[labels == label].sum())
        assert abs(held_out - count * fraction) <= 1
        assert count < 2 or 1 <= held_out <= count - 1
    assert (chosen == stratified_split(labels, names, fraction, seed)).all()


def test_split_follows_the_names_and_the_seed():
    labels = np.zeros(200, np.int64)
    names = [f"a/{index}" for index in range(200)]
    chosen = stratified_split(labels, names, 0.2, 0)
    backwards = stratified_split(labels, names[::-1], 0.2, 0)[::-1]
    assert (chosen == backwards).all()
    assert (chosen != stratified_split(labels, names, 0.2, 1)).any()
    more = stratified_split(np.zeros(201, np.int64), ["a/new", *names], 0.2, 0)[1:]
    assert (chosen != more).sum() <= 1


def test_split_is_the_same_wherever_the_folder_lies(tmp_path):
    for place in ("one", "two"):
        make_classes(tmp_path / place / "set", {"a": 20, "b": 20})
    names = [
        [os.path.relpath(path, tmp_path / place) for path in opened(tmp_path / place / "set", tmp_path).val.paths]
        for place in ("one", "two")
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_val_fraction_is_checked(tmp_path, fraction):
    make_classes(tmp_path / "set", {"a": 4})
    with pytest.raises(DataError, match="--val-fraction"):
        opened(tmp_path / "set", tmp_path, val_fraction=fraction)


def test_wrong_folders_are_explained(tmp_path):
    def message(source) -> str:
        with pytest.raises(DataError) as caught:
            opened(source, tmp_path)
        return str(caught.value)

    assert "does not exist" in message(tmp_path / "nothing")
    assert "neither a folder nor a known data set" in message("nothing-of-this-name")
    make_image(tmp_path / "file.png")
    assert "is a file, not a folder" in message(tmp_path / "file.png")
    (tmp_path / "empty").mkdir()
    assert "no images in" in message(tmp_path / "empty")
    make_image(tmp_path / "loose/1.png")
    assert "holds 1 images directly, without class folders" in message(tmp_path / "loose")
    (tmp_path / "texts/a").mkdir(parents=True)
    (tmp_path / "texts/a/1.txt").write_text("x")
    assert "1 files that are not images" in message(tmp_path / "texts")
    make_classes(tmp_path / "untrained/val", {"a": 2})
    assert "no train folder" in message(tmp_path / "untrained")
    make_classes(tmp_path / "differ/train", {"a": 2, "b": 2})
    make_classes(tmp_path / "differ/val", {"a": 2, "c": 1})
    assert "lacks 1 of the 3 classes" in message(tmp_path / "differ")
    make_classes(tmp_path / "single", {"a": 1, "b": 1})
    assert "two images that a split" in message(tmp_path / "single")


def test_an_unreadable_folder_is_explained(tmp_path):
    make_classes(tmp_path / "set", {"a": 2})
    (tmp_path / "set/a").chmod(0)
    try:
        if os.access(tmp_path / "set/a", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(DataError, match="cannot list"):
            find_in_folder(tmp_path / "set", 0.1, 0)
    finally:
        (tmp_path / "set/a").chmod(0o755)


def test_a_listing_that_takes_long_shows_how_far_it_is(tmp_path, monkeypatch, capsys):
    make_classes(tmp_path / "set", {"a": 2, "b": 2, "c": 2})
    slow_scan = sources._scan
    find_in_folder(tmp_path / "set", 0.1, 0)
    assert not capsys.readouterr().err, "a quick one shows nothing"

    def scan(root):
        time.sleep(0.7)
        return slow_scan(root)

    monkeypatch.setattr(sources, "_scan", scan)
    find_in_folder(tmp_path / "set", 0.1, 0, show_progress=False)
    assert not capsys.readouterr().err
    find_in_folder(tmp_path / "set", 0.1, 0)
    assert f"list {tmp_path}/set:  67%" in capsys.readouterr().err


def test_empty_class_folders(tmp_path, caplog):
    make_classes(tmp_path / "set/train", {"a": 2, "b": 2, "c": 0})
    make_classes(tmp_path / "set/val", {"a": 2, "b": 0})
    data = opened(tmp_path / "set", tmp_path)
    assert data.classes == ("a", "b")
    assert data.val.class_counts().tolist() == [2, 0]
    assert "not taken as classes: c" in caplog.text


def test_csv_with_split_column(tmp_path):
    make_classes(tmp_path / "images", {"x": 6})
    rows = [
        "path,label,split",
        "x/0.png,10,train",
        "x/1.png,9,train",
        f"{tmp_path}/images/x/2.png,10,val",
        "x/3.png,9,test",
    ]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows), encoding="utf-8-sig")
    data = opened("demo", tmp_path, csv=table, image_root=tmp_path / "images")
    assert data.name == "table"
    assert data.classes == ("9", "10")
    assert data.train.labels.tolist() == [1, 0]
    assert list(data.val.paths) == [str(tmp_path / "images/x/2.png")]


def test_csv_without_split_column_and_with_other_names(tmp_path):
    make_classes(tmp_path / "images", {"x": 20})
    table = tmp_path / "images/table.tsv"
    lines = ["kind\tfile", *(f"{'odd' if i % 2 else 'even'}\tx/{i}.png" for i in range(20))]
    table.write_text("\n".join(lines))
    data = opened("demo", tmp_path, csv=table, path_column="file", label_column="kind", val_fraction=0.2)
    assert data.classes == ("even", "odd")
    assert data.val.class_counts().tolist() == [2, 2]
    assert data.train.class_counts().tolist() == [8, 8]
    named = opened(tmp_path / "images", tmp_path, csv=table, path_column="file", label_column="kind", val_fraction=0.2)
    assert list(named.val.paths) == list(data.val.paths)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no column 'path'"),
        ("path,label\n", "has no rows"),
        ("file,label\n1.png,a\n", "--path-column"),
        ("path,kind\n1.png,a\n", "--label-column"),
        ("path,label\n1.png\n", "line 2"),
        ("path,label\n1.png,\n", "line 2"),
        ("path,label,split\n1.png,a,later\n", "'later'"),
        ("path,label,split\n1.png,a,train\n", "no val rows"),
        ("path,label\n1.png,a\nmissing.png,b\n", "1 of the 2 files"),
    ],
)
def test_wrong_csv_is_explained(tmp_path, text, expected):
    make_image(tmp_path / "1.png")
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match=expected):
        opened("demo", tmp_path, csv=tmp_path / "table.csv")


def test_missing_csv_and_missing_image_root(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        opened("demo", tmp_path, csv=tmp_path / "none.csv")
    (tmp_path / "table.csv").write_text("path,label\n1.png,a\n")
    with pytest.raises(DataError, match="--image-root"):
        opened("demo", tmp_path, csv=tmp_path / "table.csv", image_root=tmp_path / "none")
    (tmp_path / "table.csv").write_bytes(b"path,label\n\xff\xfe,\x80\n")
    with pytest.raises(DataError, match="UTF-8"):
        opened("demo", tmp_path, csv=tmp_path / "table.csv")


def test_open_unlabeled(tmp_path):
    make_image(tmp_path / "set/1.png")
    make_image(tmp_path / "set/deep/2.jpg")
    found = open_unlabeled(tmp_path / "set", cache=tmp_path / "cache", show_progress=False)
    assert [os.path.basename(path) for path in found.paths] == ["1.png", "2.jpg"]
    assert found.classes == ("",)
    assert found.labels.tolist() == [0, 0]
    assert len(open_unlabeled(tmp_path / "set/1.png", cache=tmp_path / "cache", show_progress=False)) == 1
    (tmp_path / "none").mkdir()
    for wrong in ("none", "missing"):
        with pytest.raises(DataError):
            open_unlabeled(tmp_path / wrong, cache=tmp_path / "cache", show_progress=False)
