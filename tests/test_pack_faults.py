"""Packing when something is in the way: kills, full disks, dying workers, other sets, others' files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loaders import pack_job, pack_workers
from loaders.opening import open_data
from loaders.pack import main
from loaders.pack_job import pack
from loaders.pack_records import PackError, PackOptions
from loaders.pack_sources import PackSource, source_of
from loaders.packed_manifest import JOURNAL, MANIFEST
from loaders.sources import DataError
from tests.packing import contents, packing


@pytest.fixture(scope="module")
def source(kinds: Path) -> PackSource:
    return source_of(open_data(str(kinds), show_progress=False))


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


def killed(images: object, options: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies(source: PackSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_workers, "pack_images", killed)
    with pytest.raises(PackError, match="a worker process died"):
        packing(source, tmp_path)


def test_interrupt(source: PackSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt  # what Ctrl-C becomes, unless the tests themselves run where it is ignored

    monkeypatch.setattr(pack_job, "write_index", interrupted)
    folder = Path(source.train.files[0]).parents[2]
    assert main([str(folder), str(tmp_path / "packed"), "--no-progress"]) == 130
