"""What can be packed: folders, tables, tars; by the command, and into the cache."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from loaders import pack_job
from loaders.dataset import ImageData
from loaders.opening import open_data
from loaders.pack import main
from loaders.pack_cache import cached_pack_path, cached_sets, remove_cached
from loaders.pack_records import PackError, PackOptions
from loaders.pack_sources import PackSource, source_of, source_of_tars
from loaders.packed import open_packed
from loaders.packed_manifest import BAD_FILES
from loaders.sources import DataError
from tests.folders import image_folder
from tests.images import damaged, photo
from tests.packing import difference, image_of, opened, packing


@pytest.fixture(scope="module")
def source(kinds: Path) -> PackSource:
    return source_of(open_data(str(kinds), show_progress=False))


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


def test_command_line(kinds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    destination = tmp_path / "packed"
    command = [str(kinds), str(destination), "--max-side", "100", "--renditions", "64,32", "--no-progress"]
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
    assert main([str(kinds), str(tmp_path / "x"), "--keep", "--renditions", "7"]) == 2
    for wrong in ([], ["--verify"], ["--clean", "x"], [str(kinds), "x", "--renditions", "a"]):
        with pytest.raises(SystemExit):
            main(wrong)


def test_csv(kinds: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("path,label\n" + "".join(f"train/plain/p{n}.jpg,{n % 2}\n" for n in range(6)))
    arguments = [str(kinds), str(tmp_path / "packed"), "--csv", str(tmp_path / "table.csv"), "--no-progress"]
    assert main(arguments) == 0
    train, val = opened(tmp_path / "packed")
    assert train.classes == ("0", "1") and len(train) + len(val) == 6


def test_cache(source: PackSource, kinds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = PackOptions(max_side=64)
    path = cached_pack_path(source, options, tmp_path)
    assert path != cached_pack_path(source, PackOptions(), tmp_path)
    assert main([str(kinds), "--max-side", "64", "--cache-dir", str(tmp_path), "--no-progress"]) == 0
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
