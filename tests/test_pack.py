"""Packing: what is stored, what is left out, and what survives kills and full disks."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kernels.restart import interval_starts
from loaders import pack_job, pack_workers
from loaders.dataset import ImageData, PixelForm
from loaders.opening import open_data
from loaders.pack import main
from loaders.pack_cache import cached_pack_path, cached_sets, remove_cached
from loaders.pack_images import find_jpegtran
from loaders.pack_job import pack
from loaders.pack_records import PackError, PackOptions
from loaders.pack_sources import PackSource, source_of, source_of_tars
from loaders.packed import PackedDataset, open_packed, verify_record
from loaders.packed_manifest import BAD_FILES, JOURNAL, MANIFEST, Manifest
from loaders.pixels import decode, upright
from loaders.sources import DataError
from tests.folders import image_folder
from tests.images import damaged, exif, photo


def packing(source: PackSource, folder: Path, workers: int = 1, **options: object) -> Manifest:
    return pack(source, folder, PackOptions(**options), workers=workers, show_progress=False)  # type: ignore[arg-type]


def opened(folder: Path) -> tuple[PackedDataset, PackedDataset]:
    data = open_packed(folder)
    assert isinstance(data.train, PackedDataset) and isinstance(data.val, PackedDataset)
    return data.train, data.val


def records_by_name(folder: Path) -> dict[str, tuple[PackedDataset, int]]:
    return {Path(d.paths[i]).name: (d, i) for d in opened(folder) for i in range(len(d))}


def image_of(dataset: PackedDataset, index: int, rendition: int | None = None) -> Image.Image:
    assert verify_record(dataset, index, rendition) is None
    image = Image.open(io.BytesIO(dataset.record(index, rendition).tobytes()))
    image.load()
    return image


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def difference(first: Image.Image, second: Image.Image) -> float:
    pixels = [np.asarray(image.convert("RGB"), np.float64) for image in (first, second)]
    assert pixels[0].shape == pixels[1].shape
    return float(np.abs(pixels[0] - pixels[1]).mean())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all kinds in one class, ordinary photos in another."""
    root = tmp_path_factory.mktemp("source") / "kinds"
    for split in ("train", "val"):
        for name in ("odd", "plain"):
            (root / split / name).mkdir(parents=True)
    for number in range(6):
        photo(150 + 10 * number, 120, number).save(root / "train/plain" / f"p{number}.jpg", quality=92)
    photo(90, 140, 50).save(root / "val/plain/q0.jpg")
    photo(60, 40, 51).save(root / "val/odd/q1.jpg")
    odd = root / "train/odd"
    picture = photo(200, 130, 7)
    picture.save(odd / "progressive.jpg", progressive=True, quality=88)
    picture.save(odd / "turned.jpg", exif=exif(6), quality=90)
    picture.convert("L").save(odd / "gray.jpg", quality=90)
    picture.convert("CMYK").save(odd / "cmyk.jpg", quality=95)
    picture.save(odd / "rgb.jpg", keep_rgb=True, quality=95)
    picture.save(odd / "full.jpg", subsampling="4:4:4", quality=90, comment=b"secret")
    picture.save(odd / "half.jpg", subsampling="4:2:2", quality=90)
    picture.save(odd / "alpha.png")
    picture.convert("RGBA").save(odd / "rgba.png")
    Image.fromarray(np.arange(100 * 80, dtype=np.uint16).reshape(80, 100) * 8).save(odd / "deep.png")
    Image.fromarray(np.random.default_rng(3).integers(0, 2, (90, 90, 3), np.uint8) * 255).save(odd / "noise.png")
    photo(1, 1, 8).save(odd / "dot.png")
    data = (root / "train/plain/p0.jpg").read_bytes()
    half = len(data) // 2
    (odd / "corrupt.jpg").write_bytes(data[:half] + b"\xff\xd3" + data[half:])  # Pillow shows what comes before
    for damage in ("early", "empty", "text"):
        damaged(odd, damage, damage)
    return root


@pytest.fixture(scope="module")
def source(folder: Path) -> PackSource:
    return source_of(open_data(str(folder), show_progress=False))


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


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> PackSource:
    """Enough bytes for about eight shards of 1 MB."""
    root = tmp_path_factory.mktemp("large")
    noise = np.random.default_rng(0).integers(0, 256, (500, 400, 3), np.uint8)
    for split, count in (("train", 60), ("val", 4)):
        folder = root / split / "noise"
        folder.mkdir(parents=True)
        Image.fromarray(noise).save(folder / "0000.jpg", quality=90)
        for number in range(1, count):
            os.link(folder / "0000.jpg", folder / f"{number:04d}.jpg")
    return source_of(open_data(str(root), show_progress=False))


@pytest.fixture(scope="module")
def whole(large: PackSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The large source, packed by one worker without interruption."""
    destination = tmp_path_factory.mktemp("packed") / "whole"
    packing(large, destination, shard_mb=1)
    return destination


def test_images_are_upright_and_shrunk(folder: Path, shrunk: Path) -> None:
    for name, (dataset, index) in records_by_name(shrunk).items():
        image = image_of(dataset, index)
        original = decode(folder.parent / "kinds" / dataset.paths[index])
        assert max(image.size) == min(100, max(original.size)), name
        assert (dataset.widths[index], dataset.heights[index]) == image.size
        assert abs(image.width / image.height - original.width / original.height) < 0.03
        assert dataset.orientations[index] == 1
        if name not in ("noise.png", "dot.png", "rgb.jpg", "cmyk.jpg"):
            assert difference(image, original.resize(image.size, Image.Resampling.LANCZOS)) < 3, name
        assert image.info.get("progressive") is None and "comment" not in image.info


def test_labels_names_and_splits_are_those_of_the_source(folder: Path, shrunk: Path) -> None:
    data = open_data(str(folder), show_progress=False)
    packed = open_data(str(shrunk))
    assert isinstance(packed.train, PackedDataset)
    assert packed.classes == data.classes == ("odd", "plain")
    assert packed.name == data.name and packed.val.name == data.val.name
    for before, after in ((data.train, packed.train), (data.val, packed.val)):
        labels = {os.path.relpath(path, folder): label for path, label in zip(before.paths, before.labels, strict=True)}
        good = [os.path.relpath(path, folder) for path in before.paths if Path(path).stem not in BAD]
        assert list(after.paths) == good
        assert after.labels.tolist() == [labels[path] for path in after.paths]
        assert (
            after.sizes.tolist() == after.records.lengths.tolist() == [len(after.record(i)) for i in range(len(after))]
        )


BAD = ("early", "empty", "text")


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


def test_keep_is_lossless(folder: Path, kept: Path) -> None:
    records = records_by_name(kept)
    for name in ("p0.jpg", "q1.jpg", "progressive.jpg", "turned.jpg", "gray.jpg", "full.jpg", "half.jpg"):
        dataset, index = records[name]
        with Image.open(folder / dataset.paths[index]) as original:
            original.load()
        stored = image_of(dataset, index)
        assert stored.mode == original.mode
        assert np.array_equal(np.asarray(stored), np.asarray(original)), name
        assert "progressive" not in stored.info and "exif" not in stored.info and "comment" not in stored.info
    dataset, index = records["turned.jpg"]
    assert dataset.orientations[index] == 6
    assert (dataset.widths[index], dataset.heights[index]) == (130, 200)


def test_keep_encodes_what_cannot_be_kept(folder: Path, kept: Path) -> None:
    records = records_by_name(kept)
    for name in ("cmyk.jpg", "rgb.jpg", "alpha.png", "rgba.png", "deep.png", "noise.png", "corrupt.jpg"):
        dataset, index = records[name]
        original = decode(folder / dataset.paths[index])
        assert difference(image_of(dataset, index), original) < (15 if name == "noise.png" else 2.5), name
    changes = json.loads((kept / MANIFEST).read_text())["splits"]["train"]["tally"]["changes"]
    assert changes == {
        "progressive made baseline, without loss": 1,
        "re-encoded at quality 95: CMYK colors": 1,
        "re-encoded at quality 95: PNG file": 5,
        "re-encoded at quality 95: RGB-coded JPEG": 1,
        "re-encoded at quality 95: damaged JPEG data": 1,
    }


def test_renditions_of_kept_images_have_their_orientation(folder: Path, kept: Path) -> None:
    dataset, index = records_by_name(kept)["turned.jpg"]
    small = upright(image_of(dataset, index, 0), int(dataset.orientations[index]))
    assert small.size == (dataset.renditions[0].widths[index], dataset.renditions[0].heights[index]) == (31, 48)
    original = decode(folder / dataset.paths[index])
    assert difference(small, original.resize(small.size, Image.Resampling.LANCZOS)) < 4


def test_keep_without_jpegtran(source: PackSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackError, match="libjpeg-turbo-progs"):
        packing(source, tmp_path / "packed", keep=True)


def test_same_bytes_whatever_the_workers(large: PackSource, whole: Path, tmp_path: Path) -> None:
    packing(large, tmp_path, workers=3, shard_mb=1)
    assert contents(tmp_path) == contents(whole)
    assert len(list(whole.glob("train-*.arrow"))) > 3


def test_killed_and_resumed(large: PackSource, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    root = Path(large.train.files[0]).parents[2]
    arguments = [str(root), str(folder), "--shard-mb", "1", "--workers", "1", "--no-progress"]
    process = subprocess.Popen([sys.executable, "-m", "loaders.pack", *arguments], start_new_session=True)
    try:
        wait_for(lambda: len(list(folder.glob("train-*.arrow"))) >= 2, process)
    finally:
        process.kill()
        process.wait()
    assert not (folder / MANIFEST).exists()
    with pytest.raises(DataError, match="not packed to the end"):
        open_data(str(folder))
    wait_for(lambda: not group_alive(process.pid))  # no worker outlives the main process
    first = (folder / "train-00000.arrow").stat().st_mtime_ns
    (folder / ".train-00009.arrow.xyz").write_bytes(b"what was being written")
    packing(large, folder, shard_mb=1)
    assert (folder / "train-00000.arrow").stat().st_mtime_ns == first
    assert contents(folder) == contents(whole)


def wait_for(condition: object, process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert process is None or process.poll() is None, "the process ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_damaged_shard_is_packed_again_on_resuming(large: PackSource, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(whole, folder)
    document = json.loads((folder / MANIFEST).read_text())
    document["finished"] = {name: split["shards"] for name, split in document["splits"].items()}
    document["splits"] = {}
    (folder / JOURNAL).write_text(json.dumps(document))
    (folder / MANIFEST).unlink()
    os.truncate(folder / "train-00001.arrow", 5000)
    packing(large, folder, shard_mb=1)
    assert contents(folder) == contents(whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_too_small_a_disk_is_seen_first(large: PackSource, small_disk: Path) -> None:
    with pytest.raises(PackError, match=r"needs about .* MB more, and .* MB is free"):
        packing(large, small_disk / "packed", shard_mb=1)
    assert contents(small_disk / "packed") == {}


def test_full_disk(large: PackSource, whole: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_disk / "packed"
    with monkeypatch.context() as patched:
        patched.setattr(pack_job._Job, "_require_space", lambda *_: None)
        with pytest.raises(PackError, match=r"the disk is full: .* has .* left.*about .* more is needed"):
            packing(large, folder, shard_mb=1)
    assert not (folder / MANIFEST).exists()
    with pytest.raises(DataError, match="not packed to the end"):
        open_data(str(folder))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    packing(large, folder, shard_mb=1)
    assert contents(folder) == contents(whole)


def test_a_packed_set_is_recognized(source: PackSource, shrunk: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in shrunk.iterdir()}
    packing(source, shrunk, max_side=100, renditions=(64, 32))
    assert {path: path.stat().st_mtime_ns for path in shrunk.iterdir()} == before


def test_other_options_or_data_are_refused(source: PackSource, large: PackSource, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    packing(source, folder)
    with pytest.raises(PackError, match=r"packed with other options .--quality 90.*--overwrite"):
        packing(source, folder, quality=80)
    with pytest.raises(PackError, match=r"holds other data.*--overwrite"):
        packing(large, folder)
    pack(source, folder, PackOptions(quality=80), workers=1, overwrite=True, show_progress=False)
    packing(source, folder, quality=80)
    os.truncate(folder / "val-00000.arrow", 100)
    with pytest.raises(PackError, match=r"val-00000.arrow is missing or cut off.*--overwrite"):
        packing(source, folder, quality=80)


def test_other_files_are_left_alone(source: PackSource, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(PackError, match="holds other files"):
            pack(source, tmp_path, overwrite=overwrite, show_progress=False)
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}
    with pytest.raises(PackError, match="is a file"):
        pack(source, tmp_path / "thesis.tex", show_progress=False)


@pytest.mark.parametrize(
    "options",
    [{"max_side": 3}, {"quality": 101}, {"renditions": (500,)}, {"renditions": (2,)}, {"restart_blocks": 0}],
)
def test_impossible_options(options: dict[str, object]) -> None:
    with pytest.raises(PackError, match="--"):
        PackOptions(**options)  # type: ignore[arg-type]


def test_nothing_to_pack(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "source" / split / "a").mkdir(parents=True)
        damaged(tmp_path / "source" / split / "a", "text")
    source = source_of(open_data(str(tmp_path / "source"), show_progress=False))
    with pytest.raises(PackError, match="none of the 1 images of source/train can be decoded"):
        packing(source, tmp_path / "packed")
    with pytest.raises(DataError):
        open_packed(tmp_path / "packed")


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    image_folder(tmp_path / "source", 4, 3)
    first = next((tmp_path / "source/train/blue").iterdir())
    try:
        os.rename(first, os.fsencode(first.parent) + b"/caf\xe9.jpg")
    except OSError as error:
        pytest.skip(f"the file system takes no such names: {error}")
    packing(source_of(open_data(str(tmp_path / "source"), show_progress=False)), tmp_path / "packed")
    assert "train/blue/caf\\udce9.jpg" in list(opened(tmp_path / "packed")[0].paths)


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    photo(70, 50, seed).save(buffer, "JPEG")
    return buffer.getvalue()


def test_webdataset(tmp_path: Path) -> None:
    paths = []
    for name, start in (("photos-train-000", 0), ("photos-train-001", 20), ("photos-val-000", 40)):
        files = {}
        for number in range(start, start + 6):
            files |= {f"{number:05d}.cls": str(number % 3 * 5).encode(), f"{number:05d}.jpg": jpeg(number)}
        files["00007.json"] = b"{}"
        files["extra.jpg"] = jpeg(99)  # without a label
        paths.append(write_tar(tmp_path / f"{name}.tar", files))
    source = source_of_tars(paths, 0.1, 0, False)
    assert source.name == "photos-train" and source.classes == ("0", "5", "10")
    packing(source, tmp_path / "packed")
    train, val = opened(tmp_path / "packed")
    assert (len(train), len(val)) == (12, 6)
    for dataset in (train, val):
        for index, path in enumerate(dataset.paths):
            number = int(Path(path).stem)
            assert dataset.labels[index] == number % 3
            assert difference(image_of(dataset, index), photo(70, 50, number)) < 8


def test_tar_of_class_folders(tmp_path: Path) -> None:
    files = {f"./{'cat' if n % 2 else 'dog'}/{n}.jpg": jpeg(n) for n in range(20)}
    assert main([str(write_tar(tmp_path / "pets.tar", files)), str(tmp_path / "packed"), "--no-progress"]) == 0
    train, val = opened(tmp_path / "packed")
    assert train.classes == ("cat", "dog")
    assert (len(train), len(val)) == (18, 2)
    assert sorted(train.class_counts()) == [9, 9]


def test_tars_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Compressed tars"):
        source_of_tars([write_tar(tmp_path / "a.tar.gz", {"a/1.jpg": jpeg(1)})], 0.1, 0, False)
    with pytest.raises(DataError, match="no labeled images"):
        source_of_tars([write_tar(tmp_path / "b.tar", {"1.jpg": jpeg(1)})], 0.1, 0, False)


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    destination = tmp_path / "packed"
    command = [str(folder), str(destination), "--max-side", "100", "--renditions", "64,32", "--no-progress"]
    for _ in range(2):  # packed, then recognized
        assert main([*command, "--workers", "2"]) == 0
        output = capsys.readouterr().out
        assert "19         3" in output and f"{destination / BAD_FILES}" in output and "5 PNG made JPEG" in output
    assert main(["--verify", str(destination)]) == 0
    assert "every record is as it was packed" in capsys.readouterr().out
    assert main([*command, "--quality", "80"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([str(destination), str(tmp_path / "again")]) == 2
    assert "packed already" in capsys.readouterr().err
    assert main([str(folder), str(tmp_path / "x"), "--keep", "--renditions", "7"]) == 2
    for wrong in ([], ["--verify"], ["--clean", "x"], [str(folder), "x", "--renditions", "a"]):
        with pytest.raises(SystemExit):
            main(wrong)


def test_csv(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("path,label\n" + "".join(f"train/plain/p{n}.jpg,{n % 2}\n" for n in range(6)))
    arguments = [str(folder), str(tmp_path / "packed"), "--csv", str(tmp_path / "table.csv"), "--no-progress"]
    assert main(arguments) == 0
    train, val = opened(tmp_path / "packed")
    assert train.classes == ("0", "1") and len(train) + len(val) == 6


def test_cache(source: PackSource, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = PackOptions(max_side=64)
    path = cached_pack_path(source, options, tmp_path)
    assert path != cached_pack_path(source, PackOptions(), tmp_path)
    assert main([str(folder), "--max-side", "64", "--cache-dir", str(tmp_path), "--no-progress"]) == 0
    (found,) = cached_sets(tmp_path)
    assert found.folder == path and found.whole and found.bytes > 10_000
    with pack_job._locked(path):
        assert not remove_cached(found)
    capsys.readouterr()
    assert main(["--list-cache", "--cache-dir", str(tmp_path)]) == 0
    assert str(path) in capsys.readouterr().out
    assert main(["--clean", "--cache-dir", str(tmp_path)]) == 0
    assert "removed" in capsys.readouterr().out
    assert list(cached_sets(tmp_path)) == []


def test_source_is_split_like_the_data(tmp_path: Path) -> None:
    image_folder(tmp_path / "all", 30, 0)
    data: ImageData = open_data(str(tmp_path / "all" / "train"), val_fraction=0.3, seed=5, show_progress=False)
    packing(source_of(data), tmp_path / "packed")
    for before, after in zip((data.train, data.val), opened(tmp_path / "packed"), strict=True):
        assert [Path(path).name for path in before.paths] == [Path(path).name for path in after.paths]


def killed(images: object, options: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies(source: PackSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_workers, "pack_images", killed)
    with pytest.raises(PackError, match="a worker process died"):
        packing(source, tmp_path)


def test_interrupt(source: PackSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(pack_job, "write_index", interrupted)
    folder = Path(source.train.files[0]).parents[2]
    assert main([str(folder), str(tmp_path / "packed"), "--no-progress"]) == 130
