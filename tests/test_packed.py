"""Opening packed sets: what is in memory, what other tools see, and what damage does."""

from __future__ import annotations

import gc
import io
import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from kernels.checksum import xxh64
from kernels.memory import bytes_at
from loaders import shards
from loaders.dataset import PixelForm
from loaders.opening import open_data
from loaders.pack import main
from loaders.pack_job import pack
from loaders.pack_records import PackOptions
from loaders.pack_sources import source_of
from loaders.packed import PackedDataset, open_packed, verify_record
from loaders.packed_index import write_index
from loaders.packed_manifest import MANIFEST, Manifest, ShardEntry, SplitEntry, Tally, write_manifest
from loaders.packed_verify import verify_packed
from loaders.pixels import PixelError
from loaders.shards import RecordPlaces, ShardRows
from loaders.sources import DataError
from tests.folders import image_folder
from tests.images import photo


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed set with two shards of several record batches for training and a rendition."""
    root = tmp_path_factory.mktemp("packed")
    for split, count in (("train", 30), ("val", 5)):
        for name in ("cat", "dog"):
            folder = root / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count // 2):
                photo(480, 460 + number, number).save(folder / f"{number}.jpg", quality=85)
    source = source_of(open_data(str(root / "photos"), show_progress=False))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shards, "_BATCH_BYTES", 200_000)
        pack(source, root / "set", PackOptions(shard_mb=1, renditions=(100,)), workers=1, show_progress=False)
    return root / "set"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(original, tmp_path / "set"))


def opened(folder: Path) -> PackedDataset:
    train = open_packed(folder).train
    assert isinstance(train, PackedDataset)
    return train


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        value = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([value ^ 4]))


def offset_of(dataset: PackedDataset, address: int, shard: int = 0) -> int:
    return int(address - dataset.shards.bases[shard])


def test_columns(original: Path) -> None:
    data = open_data(str(original))
    for dataset in (data.train, data.val):
        assert isinstance(dataset, PackedDataset)
        count = len(dataset)
        assert dataset.classes == ("cat", "dog")
        assert dataset.labels.dtype == np.int64 and dataset.rows.tolist() == list(range(count))
        assert (dataset.orientations == 1).all() and (dataset.forms == PixelForm.RGB).all()
        assert dataset.problems == {}
        for records in (dataset.records, *dataset.renditions):
            assert not (records.index_addresses % 4).any()
            assert records.widths.dtype == records.heights.dtype == np.int32
            for column in (records.addresses, records.lengths, records.index_addresses, records.index_counts):
                assert column.dtype == np.int64 and column.shape == (count,)
            for column in (records.checksums, records.index_checksums):
                assert column.dtype == np.uint64 and column.shape == (count,)
            for index in range(count):
                in_memory = bytes_at(int(records.addresses[index]), int(records.lengths[index]))
                assert int(xxh64(in_memory)) == records.checksums[index]
                with Image.open(io.BytesIO(in_memory.tobytes())) as image:
                    image.load()
                    assert image.size == (records.widths[index], records.heights[index])
        assert np.array_equal(dataset.record(1), bytes_at(int(dataset.records.addresses[1]), int(dataset.sizes[1])))


def test_memory_is_that_of_the_files(original: Path) -> None:
    train = opened(original)
    assert len(train.shards.files) == 2
    for column in (train.labels, train.paths.buffer, train.paths.offsets, train.records.checksums):
        assert not column.flags.owndata and not column.flags.writeable


def test_select_and_relabel(original: Path) -> None:
    train = opened(original)
    indices = np.array([29, 3, 3, 17])
    chosen = train.select(indices)
    assert isinstance(chosen, PackedDataset) and len(chosen) == 4
    for position, index in enumerate(indices.tolist()):
        assert chosen.paths[position] == train.paths[index]
        assert chosen.locate(position) == train.locate(index)
        assert np.array_equal(chosen.record(position), train.record(index))
        assert np.array_equal(chosen.record(position, 0), train.record(index, 0))
        assert verify_record(chosen, position) is None and verify_record(chosen, position, 0) is None
    relabeled = chosen.relabeled(("a",), np.zeros(4, np.int64))
    assert isinstance(relabeled, PackedDataset) and relabeled.classes == ("a",)
    assert np.array_equal(relabeled.record(0), train.record(29))
    prints = [train.fingerprint, chosen.fingerprint, relabeled.fingerprint, opened(original).fingerprint]
    assert len(set(prints)) == 3 and prints[0] == prints[3]


def test_records_outlive_the_data_set(original: Path) -> None:
    record = opened(original).select(np.array([4])).record(0)
    gc.collect()
    assert record[:2].tolist() == [0xFF, 0xD8]


def test_locate(original: Path) -> None:
    train = opened(original)
    second = int(train.shards.starts[1])
    assert train.locate(0) == "shard train-00000.arrow, record 0"
    assert train.locate(second - 1) == f"shard train-00000.arrow, record {second - 1}"
    assert train.locate(second + 2) == "shard train-00001.arrow, record 2"


def test_hugging_face_datasets(original: Path, tmp_path: Path) -> None:
    train = opened(original)
    files = [str(original / file) for file in train.shards.files]
    loaded = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path))
    assert loaded.num_rows == len(train)
    assert loaded.features["label"].names == ["cat", "dog"]
    for row, index in ((loaded[0], 0), (loaded[29], 29)):
        assert isinstance(row["image"], Image.Image) and isinstance(row["image_100"], Image.Image)
        stored = Image.open(io.BytesIO(train.record(index).tobytes()))
        assert np.array_equal(np.asarray(row["image"]), np.asarray(stored))
        assert (row["label"], row["width"]) == (train.labels[index], train.widths[index])
    mapped = datasets.Dataset.from_file(files[0])
    assert mapped[1]["image"].size == (480, 460 + 1)
    assert mapped.features["label"].int2str(mapped[1]["label"]) == "cat"


def test_pandas_and_pyarrow(original: Path) -> None:
    train = opened(original)
    with pa.memory_map(str(original / "train-00000.arrow")) as source:
        table = pa.ipc.open_stream(source).read_all()
    frame: pd.DataFrame = table.to_pandas()
    assert len(frame) == train.shards.starts[1]
    for index, row in enumerate(frame.itertuples()):
        assert row.image["path"] == train.paths[index]
        image = Image.open(io.BytesIO(row.image["bytes"]))
        image.load()
        assert image.size == (row.width, row.height)
        assert int(xxh64(np.frombuffer(row.image["bytes"], np.uint8))) == row.checksum
        assert row.restart_index == train.restart_index(index).tobytes()
    assert max(batch.nbytes for batch in table.to_batches()) < 2**31


def test_a_flipped_byte_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = opened(folder)
    second = int(train.shards.starts[1])
    record, index, small = train.records, train.records.index_addresses, train.renditions[0]
    flip(folder / "train-00000.arrow", offset_of(train, record.addresses[5]) + 2000)
    flip(folder / "train-00001.arrow", offset_of(train, index[second + 1], 1) + 8)
    flip(folder / "train-00000.arrow", offset_of(train, small.addresses[2] + small.lengths[2] - 1))
    found = [
        "shard train-00000.arrow, record 2: checksum of the rendition of 100 pixels differs",
        "shard train-00000.arrow, record 5: checksum differs",
        "shard train-00001.arrow, record 1: checksum of the restart index differs",
    ]
    train = opened(folder)
    assert [verify_record(train, 2, 0), verify_record(train, 5), verify_record(train, second + 1)] == found
    assert verify_record(train, 2) is None and verify_record(train, 5, 0) is None
    with pytest.raises(PixelError, match=r"shard train-00000\.arrow, record 5: checksum differs"):
        train.checked_record(5)
    assert np.array_equal(train.checked_record(4), train.record(4))
    assert sorted(verify_packed(folder, show_progress=False)) == found
    assert main(["--verify", str(folder)]) == 1
    assert set(found) < set(capsys.readouterr().out.splitlines())


def test_damage_that_only_other_tools_meet(folder: Path) -> None:
    train = opened(folder)
    with pa.memory_map(str(folder / "train-00001.arrow")) as source:
        base = source.read_buffer(1).address
        source.seek(0)
        labels = next(iter(pa.ipc.open_stream(source)))["label"].buffers()[1].address - base
    flip(folder / "train-00001.arrow", labels)
    flip(folder / "train-00000.arrow", 0)
    shards_found = list(verify_packed(folder, show_progress=False))
    assert shards_found[0].startswith("shard train-00000.arrow: no whole Arrow stream: ")
    assert shards_found[1:] == ["shard train-00001.arrow: its columns differ from the index"]
    assert np.array_equal(opened(folder).labels, train.labels)


def batch_ends(path: Path) -> list[int]:
    """Return the file positions behind each record batch of a stream."""
    with pa.memory_map(str(path)) as source:
        return [source.tell() for _ in pa.ipc.open_stream(source)]


def test_truncated_shards(folder: Path) -> None:
    path = folder / "train-00000.arrow"
    ends = batch_ends(path)
    assert len(ends) > 2
    for size in (path.stat().st_size - 1, ends[1], 5, 0):  # at ends[1], it is a valid stream of fewer rows
        os.truncate(path, size)
        with pytest.raises(DataError, match=r"shard train-00000.arrow .*Pack the data again"):
            open_packed(folder)


def test_a_stream_cut_between_batches_reads_short(folder: Path) -> None:
    path = folder / "train-00000.arrow"
    os.truncate(path, batch_ends(path)[1])
    rows = sum(batch.num_rows for batch in pa.ipc.open_stream(path.read_bytes()))
    assert 0 < rows < 25  # which is why the manifest is asked


@pytest.mark.parametrize("name", ["train-00001.arrow", "val.index", "train.index"])
def test_missing_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name} .*Pack the data again"):
        open_packed(folder)


def test_damaged_index(folder: Path) -> None:
    flip(folder / "train.index", 1000)
    with pytest.raises(DataError, match=r"train\.index .* its checksum differs"):
        open_packed(folder)
    os.truncate(folder / "train.index", 900)
    with pytest.raises(DataError, match=r"train\.index .* 900 bytes in place of"):
        open_packed(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["splits"]["train"]["shards"][0].update(rows=99), "promises .* records"),
        (lambda m: m["splits"]["train"]["shards"].pop(), "promises .* records"),
        (lambda m: m["splits"]["train"]["shards"].reverse(), "lie outside"),
        (lambda m: m["classes"].pop(), "lacks classes"),
        (lambda m: m["splits"].pop("val"), "damaged .it has the splits"),
        (lambda m: m["splits"]["val"].pop("index"), "damaged"),
        (lambda m: m["splits"]["val"]["shards"][0].update(file="../val.arrow"), "damaged"),
        (lambda m: m.update(options=3), "damaged"),
        (lambda m: m.update(format="x"), "no manifest of packed images"),
        (lambda m: m.update(format_version=0), "format version 0, this Headrace reads"),
    ],
)
def test_lying_manifest(folder: Path, change: object, message: str) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    change(document)  # type: ignore[operator]
    (folder / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        open_packed(folder)


def test_a_manifest_cut_off(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 300)
    with pytest.raises(DataError, match="damaged"):
        open_data(str(folder))


def test_a_manifest_of_something_else_does_not_matter(tmp_path: Path) -> None:
    image_folder(tmp_path, 9, 3)
    (tmp_path / MANIFEST).write_text('{"short_name": "an app"}')
    assert len(open_data(str(tmp_path), show_progress=False).train) == 9


def test_too_many_shards_for_the_limit_on_files(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    free = [number for number in range(len(used) + 2) if number not in used]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[1], hard))  # the limit is one of numbers, and there may be gaps
    try:
        with pytest.raises(DataError, match=r"ulimit -n.*--shard-mb"):
            open_packed(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_packed_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no packed set: it has no manifest\.json"):
        open_packed(tmp_path)


def synthetic_set(root: Path, rows: int, rows_per_shard: int) -> Path:
    """Write a set with shards of zeros, of which only sizes are true, and an index that fits them."""
    root.mkdir()
    length, splits = 100, {}
    for split in ("train", "val"):
        described, entries = [], []
        for start in range(0, rows, rows_per_shard):
            count = min(rows_per_shard, rows - start)
            file = root / f"{split}-{start}.arrow"
            file.touch()
            os.truncate(file, count * length)
            offsets = np.arange(count, dtype=np.int64) * length
            sides, lengths = np.full(count, 20, np.int32), np.full(count, length, np.int64)
            checksums, empty = np.zeros(count, np.uint64), np.zeros(count, np.int64)
            places = RecordPlaces(sides, sides, offsets, lengths, checksums, offsets, empty, checksums)
            names = pa.array([f"{number}.jpg" for number in range(start, start + count)])
            ones = np.ones(count, np.uint8)
            described.append(ShardRows(empty, ones, ones, names, (places,)))
            entries.append(ShardEntry(file.name, count, count * length, start + count, Tally()))
        index = root / f"{split}.index"
        splits[split] = SplitEntry(tuple(entries), index.name, *write_index(index, described), Tally())
    manifest = Manifest("synthetic", ("zero",), "", PackOptions(), "none", splits)
    write_manifest(root / MANIFEST, manifest)
    return root


def test_opening_makes_no_objects_for_samples(tmp_path: Path) -> None:
    def objects(rows: int) -> int:
        folder = synthetic_set(tmp_path / str(rows), rows, rows // 2)
        open_packed(folder)  # whatever is made once
        gc.collect()
        before = len(gc.get_objects())
        data = open_packed(folder)
        made = len(gc.get_objects()) - before
        assert len(data.train) == rows and data.train.paths[rows - 1] == f"{rows - 1}.jpg"
        return made

    assert abs(objects(20_000) - objects(200)) < 20


def test_shards_without_rows_are_no_set(original: Path, tmp_path: Path) -> None:
    schema = shards.shard_schema(("a",), ())
    path = tmp_path / "empty.arrow"
    with path.open("wb") as file:
        assert shards.write_shard(file, [], schema, ()) == 0
    with pytest.raises(shards.ShardError, match="no rows"):
        shards.read_shard(path, ())


def test_replacing_a_field_keeps_the_rest(original: Path) -> None:
    renamed = replace(opened(original), name="other")
    assert renamed.name == "other" and verify_record(renamed, 0) is None
