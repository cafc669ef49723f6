"""What is said of smaller versions of packed images that are damaged: the images take their place."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from kernels.jpeg import JpegLibraryError, load_library
from loaders.bad_samples import BadSamples
from loaders.packed import PackedDataset
from loaders.plan import EpochPlan, View
from tests.packed_photos import TOLERANCE, create, differences, opened

try:
    load_library()
except JpegLibraryError as error:
    pytest.skip(str(error), allow_module_level=True)


def change(folder: Path, dataset: PackedDataset, address: int) -> None:
    """Change the byte of a shard that is mapped to an address."""
    (base,) = dataset.shards.bases[:1]
    with (folder / dataset.shards.files[0]).open("r+b") as file:
        file.seek(int(address - base))
        value = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([value ^ 16]))


def test_a_damaged_rendition_is_told_once(packed_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "headrace")
    folder = Path(shutil.copytree(packed_set, tmp_path / "set"))
    dataset = opened(folder)
    small = dataset.renditions[1]
    change(folder, dataset, small.addresses[5] + 700)
    change(folder, dataset, small.index_addresses[7] + 8)
    plan = EpochPlan(dataset, 0, View.evaluation(40, 8))
    found = BadSamples("raise")
    with create(dataset, bad_samples=found) as loader:
        for _ in range(2):
            delivered = list(loader.run(plan))
            assert [index for batch in delivered for index in batch.indices.tolist()] == list(range(len(dataset)))
            assert differences(dataset, delivered[0], None)[5] < TOLERANCE
        list(loader.run(EpochPlan(dataset, 0, View.evaluation(150, 31))))
    assert len(found) == 0
    first, second = (record.getMessage() for record in caplog.records)
    assert f"{dataset.paths[5]} (sample 5 of {dataset.name}): " in first
    assert f"{dataset.locate(5)}: checksum of the rendition of {small.max_side} pixels differs" in first
    assert f"{dataset.locate(7)}: checksum of the restart index of the rendition" in second
    assert "2 of its smaller versions" in second


def test_a_damaged_image_is_a_bad_sample_alone(
    packed_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "headrace")
    folder = Path(shutil.copytree(packed_set, tmp_path / "set"))
    dataset = opened(folder)
    change(folder, dataset, dataset.renditions[1].addresses[5] + 700)
    change(folder, dataset, dataset.records.addresses[5] + 3000)
    found = BadSamples(max_fraction=0.2)
    with create(dataset, bad_samples=found) as loader:
        list(loader.run(EpochPlan(dataset, 0, View.evaluation(40, 31))))
    assert [sample.index for sample in found] == [5]
    assert not caplog.records
