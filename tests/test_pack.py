"""Packing: what is stored, and what is left out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kernels.restart import interval_starts
from loaders.dataset import PixelForm
from loaders.opening import open_data
from loaders.pack_images import find_jpegtran
from loaders.pack_records import PackError, PackOptions
from loaders.pack_sources import PackSource, source_of
from loaders.packed import PackedDataset
from loaders.packed_manifest import BAD_FILES, MANIFEST
from loaders.pixels import decode, upright
from tests.packing import difference, image_of, opened, packing, records_by_name

BAD = ("early", "empty", "text")  # names of the files that cannot be packed


@pytest.fixture(scope="module")
def source(kinds: Path) -> PackSource:
    return source_of(open_data(str(kinds), show_progress=False))


@pytest.fixture(scope="module")
def shrunk(source: PackSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("packed") / "shrunk"
    packing(source, destination, max_side=100, renditions=(32, 64))
    return destination


@pytest.fixture(scope="module")
def kept(source: PackSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        find_jpegtran()
    except PackError as error:
        pytest.skip(str(error))
    destination = tmp_path_factory.mktemp("packed") / "kept"
    packing(source, destination, keep=True, renditions=(48,))
    return destination


def test_images_are_upright_and_shrunk(kinds: Path, shrunk: Path) -> None:
    for name, (dataset, index) in records_by_name(shrunk).items():
        image = image_of(dataset, index)
        original = decode(kinds / dataset.paths[index])
        assert max(image.size) == min(100, max(original.size)), name
        assert (dataset.widths[index], dataset.heights[index]) == image.size
        assert abs(image.width / image.height - original.width / original.height) < 0.03
        assert dataset.orientations[index] == 1
        if name not in ("noise.png", "dot.png", "rgb.jpg", "cmyk.jpg"):
            assert difference(image, original.resize(image.size, Image.Resampling.LANCZOS)) < 3, name
        assert image.info.get("progressive") is None and "comment" not in image.info


def test_labels_names_and_splits_are_those_of_the_source(kinds: Path, shrunk: Path) -> None:
    data = open_data(str(kinds), show_progress=False)
    packed = open_data(str(shrunk))
    assert isinstance(packed.train, PackedDataset)
    assert packed.classes == data.classes == ("odd", "plain")
    assert packed.name == data.name and packed.val.name == data.val.name
    for before, after in ((data.train, packed.train), (data.val, packed.val)):
        labels = {os.path.relpath(path, kinds): label for path, label in zip(before.paths, before.labels, strict=True)}
        good = [os.path.relpath(path, kinds) for path in before.paths if Path(path).stem not in BAD]
        assert list(after.paths) == good
        assert after.labels.tolist() == [labels[path] for path in after.paths]
        assert (
            after.sizes.tolist() == after.records.lengths.tolist() == [len(after.record(i)) for i in range(len(after))]
        )


def test_gray_stays_gray(shrunk: Path) -> None:
    records = records_by_name(shrunk)
    for name in ("gray.jpg", "deep.png"):
        dataset, index = records[name]
        assert image_of(dataset, index).mode == "L"
        assert dataset.forms[index] == PixelForm.GRAY
    dataset, index = records["p0.jpg"]
    assert dataset.forms[index] == PixelForm.RGB


def test_restart_index(shrunk: Path) -> None:
    for dataset in opened(shrunk):
        for index in range(len(dataset)):
            for rendition in (None, 0, 1):
                record = dataset.record(index, rendition)
                starts = dataset.restart_index(index, rendition)
                assert np.array_equal(starts, interval_starts(record.copy()))
                if max(dataset.widths[index], dataset.heights[index]) > 64 and rendition is None:
                    assert len(starts) > 2
                for number, end in enumerate(starts[1:]):
                    marker = 0xD9 if number == len(starts) - 2 else 0xD0 + number % 8
                    assert record[end - 2 : end].tolist() == [0xFF, marker]


def test_renditions(shrunk: Path) -> None:
    for dataset in opened(shrunk):
        assert [rendition.max_side for rendition in dataset.renditions] == [64, 32]
        for index in range(len(dataset)):
            whole = image_of(dataset, index)
            for number, rendition in enumerate(dataset.renditions):
                small = image_of(dataset, index, number)
                assert small.size == (rendition.widths[index], rendition.heights[index])
                assert max(small.size) == min(rendition.max_side, max(whole.size))
                if max(whole.size) <= rendition.max_side:
                    assert rendition.addresses[index] == dataset.records.addresses[index]


def test_bad_files_are_listed(shrunk: Path) -> None:
    lines = (shrunk / BAD_FILES).read_text().splitlines()
    assert lines[0] == "split,path,reason"
    assert [line.split(",")[1] for line in lines[1:]] == [f"train/odd/{name}.jpg" for name in BAD]
    assert "the file is empty" in lines[2]
    tally = json.loads((shrunk / MANIFEST).read_text())["splits"]["train"]["tally"]
    assert len(tally["bad"]) == 3


def test_keep_is_lossless(kinds: Path, kept: Path) -> None:
    records = records_by_name(kept)
    for name in ("p0.jpg", "q1.jpg", "progressive.jpg", "turned.jpg", "gray.jpg", "full.jpg", "half.jpg"):
        dataset, index = records[name]
        with Image.open(kinds / dataset.paths[index]) as original:
            original.load()
        stored = image_of(dataset, index)
        assert stored.mode == original.mode
        assert np.array_equal(np.asarray(stored), np.asarray(original)), name
        assert "progressive" not in stored.info and "exif" not in stored.info and "comment" not in stored.info
    dataset, index = records["turned.jpg"]
    assert dataset.orientations[index] == 6
    assert (dataset.widths[index], dataset.heights[index]) == (130, 200)


def test_keep_encodes_what_cannot_be_kept(kinds: Path, kept: Path) -> None:
    records = records_by_name(kept)
    for name in ("cmyk.jpg", "rgb.jpg", "alpha.png", "rgba.png", "deep.png", "noise.png", "corrupt.jpg"):
        dataset, index = records[name]
        original = decode(kinds / dataset.paths[index])
        assert difference(image_of(dataset, index), original) < (15 if name == "noise.png" else 2.5), name
    changes = json.loads((kept / MANIFEST).read_text())["splits"]["train"]["tally"]["changes"]
    assert changes == {
        "progressive made baseline, without loss": 1,
        "re-encoded at quality 95: CMYK colors": 1,
        "re-encoded at quality 95: PNG file": 5,
        "re-encoded at quality 95: RGB-coded JPEG": 1,
        "re-encoded at quality 95: damaged JPEG data": 1,
    }


def test_renditions_of_kept_images_have_their_orientation(kinds: Path, kept: Path) -> None:
    dataset, index = records_by_name(kept)["turned.jpg"]
    small = upright(image_of(dataset, index, 0), int(dataset.orientations[index]))
    assert small.size == (dataset.renditions[0].widths[index], dataset.renditions[0].heights[index]) == (31, 48)
    original = decode(kinds / dataset.paths[index])
    assert difference(small, original.resize(small.size, Image.Resampling.LANCZOS)) < 4


def test_keep_without_jpegtran(source: PackSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackError, match="libjpeg-turbo-progs"):
        packing(source, tmp_path / "packed", keep=True)


def test_a_packed_set_is_recognized(source: PackSource, shrunk: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in shrunk.iterdir()}
    packing(source, shrunk, max_side=100, renditions=(64, 32))
    assert {path: path.stat().st_mtime_ns for path in shrunk.iterdir()} == before


@pytest.mark.parametrize(
    "options",
    [{"max_side": 3}, {"quality": 101}, {"renditions": (500,)}, {"renditions": (2,)}, {"restart_blocks": -1}],
)
def test_impossible_options(options: dict[str, object]) -> None:
    with pytest.raises(PackError, match="--"):
        PackOptions(**options)  # type: ignore[arg-type]
