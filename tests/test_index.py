"""The index: header facts compared with Pillow's, unreadable files, and what is kept in the cache."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from loaders import headers, index
from loaders.dataset import ImageDataset, PixelForm
from loaders.opening import open_unlabeled
from loaders.sources import list_paths

FORMS = {
    "RGB": PixelForm.RGB,
    "L": PixelForm.GRAY,
    "CMYK": PixelForm.CMYK,
    "1": PixelForm.OTHER,
    "P": PixelForm.OTHER,
    "LA": PixelForm.OTHER,
    "RGBA": PixelForm.OTHER,
    "I;16": PixelForm.OTHER,
}


def indexed(folder: Path, cache: Path | None = None) -> ImageDataset:
    return open_unlabeled(folder, cache=cache or folder.parent / "cache", show_progress=False)


def check_against_pillow(dataset: ImageDataset) -> None:
    for position, path in enumerate(dataset.paths):
        with Image.open(path) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            upright = ImageOps.exif_transpose(image)
            assert (dataset.widths[position], dataset.heights[position]) == upright.size, path
            assert dataset.orientations[position] == (orientation if 1 <= orientation <= 8 else 1), path
            assert dataset.forms[position] == FORMS[image.mode], path
        assert dataset.sizes[position] == os.path.getsize(path)


@pytest.fixture
def no_pillow(monkeypatch):
    """Make files that are left to Pillow an error: the compiled code must know them."""

    def refuse(path):
        raise AssertionError(f"{path} was left to Pillow")

    monkeypatch.setattr(headers, "_read_with_pillow", refuse)


def exif(orientation: object, endian: str = "<", before: int = 0) -> Image.Exif:
    data = Image.Exif()
    data.endian = endian
    for tag in range(before):
        data[ExifTags.Base.ImageDescription.value - tag] = "x" * 40
    data[ExifTags.Base.Orientation] = orientation
    return data


def test_usual_files_are_read_without_pillow(tmp_path, no_pillow):
    folder = tmp_path / "set"
    folder.mkdir()
    for mode in ("RGB", "L", "CMYK"):
        for progressive in (False, True):
            Image.new(mode, (31, 17)).save(folder / f"{mode}{progressive}.jpg", progressive=progressive)
    for mode in ("RGB", "L", "1", "P", "LA", "RGBA", "I;16"):
        Image.new(mode, (31, 17)).save(folder / f"{mode}.png")
    for orientation in range(1, 9):
        for endian in "<>":
            name = f"{orientation}{'be' if endian == '>' else 'le'}"
            data = exif(orientation, endian, before=3)
            Image.new("RGB", (31, 17)).save(folder / f"{name}.jpg", exif=data, icc_profile=b"p" * 150_000)
            Image.new("RGB", (31, 17)).save(folder / f"{name}.png", exif=data)
    dataset = indexed(folder)
    assert len(dataset) == 6 + 7 + 32
    check_against_pillow(dataset)


def test_unusual_files_agree_with_pillow(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    image = Image.new("RGB", (20, 10))
    for orientation in (0, 9, 77):
        image.save(folder / f"wrong{orientation}.jpg", exif=exif(orientation))
        image.save(folder / f"wrong{orientation}.png", exif=exif(orientation))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image.save(folder / "xmp.jpg", xmp=xmp)
    image.save(folder / "xmp-and-exif.jpg", xmp=xmp, exif=exif(3))
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    text.add_text("Comment", "nothing of interest")
    image.save(folder / "xmp.png", pnginfo=text)
    for name, mode in (("a.webp", "RGB"), ("b.webp", "RGBA"), ("a.bmp", "RGB"), ("b.bmp", "L"), ("c.bmp", "1")):
        Image.new(mode, (20, 10)).save(folder / name)
    image.save(folder / "turned.webp", exif=exif(8))
    plain = io.BytesIO()
    image.save(plain, "JPEG")
    segment = struct.pack(">2sH", b"\xff\xe1", 2 + 40) + b"Exif\x00\x00" + b"neither II nor MM".ljust(34)
    (folder / "broken-exif.jpg").write_bytes(b"\xff\xd8" + segment + plain.getvalue()[2:])
    (folder / "fill-bytes.jpg").write_bytes(b"\xff\xd8\xff\xff" + plain.getvalue()[3:])
    dataset = indexed(folder)
    assert not dataset.problems
    check_against_pillow(dataset)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_exif_behind_the_pixels_of_a_png(tmp_path, no_pillow):
    folder = tmp_path / "set"
    folder.mkdir()
    plain = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)).save(plain, "PNG")
    content = plain.getvalue()
    chunk = png_chunk(b"eXIf", exif(6).tobytes().removeprefix(b"Exif\x00\x00"))
    (folder / "1.png").write_bytes(content[:-12] + chunk + content[-12:])
    dataset = indexed(folder)
    assert dataset.orientations.tolist() == [6]
    check_against_pillow(dataset)


def test_transparency_and_depth_of_a_png(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (5, 5)).save(folder / "a.png", transparency=(0, 0, 0))
    Image.new("L", (5, 5)).save(folder / "b.png", transparency=0)
    deep = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 5, 16, 2, 0, 0, 0))
    rows = zlib.compress(b"".join(b"\x00" + bytes(30) for _ in range(5)))
    (folder / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n" + deep + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b""))
    assert indexed(folder).forms.tolist() == [PixelForm.OTHER] * 3


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200),
    start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"BM", b"RIFF"]),
)
def test_any_bytes_are_survived(tmp_path, data, start):
    (tmp_path / "file").write_bytes(start + data)
    listing, _ = list_paths([str(tmp_path / "file")], np.zeros(1, np.int64))
    index._read_all("set", index.StringColumn.of(listing.paths), show_progress=False)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_agree_with_pillow(tmp_path, data):
    """Whatever byte of a header is changed: what is read without Pillow is what Pillow reads."""
    kind = data.draw(st.sampled_from(["JPEG", "PNG"]))
    stream = io.BytesIO()
    Image.new("RGB", (20, 10)).save(stream, kind, exif=exif(6))
    content = bytearray(stream.getvalue())
    content[data.draw(st.integers(0, min(len(content), 250) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "file"
    path.write_bytes(content)
    sizes, orientations, forms = np.ones((1, 2), np.int32), np.ones(1, np.uint8), np.ones(1, np.uint8)
    paths = index.StringColumn.of([str(path)])
    headers._read_batch(paths.buffer, paths.offsets, 0, 1, sizes, orientations, forms)
    if orientations[0] == 0:
        return  # left to Pillow
    try:
        with Image.open(path, formats=headers.FORMATS) as image:
            image.load()
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # found out when it is decoded
        return
    turned = orientation in (5, 6, 7, 8)
    assert tuple(sizes[0]) == (image.size[::-1] if turned else image.size)
    assert orientations[0] == (orientation if orientation in range(1, 9) else 1)


def test_unreadable_files_are_named(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "good.jpg")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    Image.new("P", (8, 8)).save(folder / "gif.jpg", "GIF")
    Image.new("RGB", (8, 8)).save(folder / "tiff.png", "TIFF")
    (folder / "short.jpg").write_bytes((folder / "good.jpg").read_bytes()[:100])
    huge = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 10_001, 8, 2, 0, 0, 0))
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + huge + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""))
    (folder / "nowhere.jpg").symlink_to(folder / "missing")
    dataset = indexed(folder)
    reasons = {os.path.basename(dataset.paths[i]): reason for i, reason in dataset.problems.items()}
    assert reasons.keys() == {p.name for p in folder.iterdir()} - {"good.jpg"}
    assert "empty" in reasons["empty.jpg"]
    assert "200 megapixels" in reasons["huge.png"]
    assert "not a JPEG, PNG, WebP or BMP" in reasons["gif.jpg"]
    assert "No such file" in reasons["nowhere.jpg"]
    bad = list(dataset.problems)
    assert (dataset.forms[bad] == PixelForm.UNREADABLE).all()
    assert (dataset.widths[bad] == 1).all() and (dataset.heights[bad] == 1).all()
    again = indexed(folder)
    assert again.problems == dataset.problems


def test_names_of_all_kinds(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("müll 1.png", "図.png", "a\nb.png", "x" * 200 + ".png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / os.fsdecode(b"\xff\xfe.png")).write_bytes((folder / "図.png").read_bytes())
    dataset = indexed(folder)
    assert len(dataset) == 5 and not dataset.problems


def test_second_opening_reads_no_header(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (8 + number, 8)).save(folder / f"{number}.png")
    first = indexed(folder)

    def refuse(*_args):
        raise AssertionError("a header was read")

    with monkeypatch.context() as patch:
        patch.setattr(index, "read_headers", refuse)
        second = indexed(folder)
    for column in ("widths", "heights", "orientations", "forms", "sizes", "labels"):
        ours, theirs = getattr(first, column), getattr(second, column)
        assert (ours == theirs).all() and ours.dtype == theirs.dtype
    assert first.fingerprint == second.fingerprint
    assert (first.widths.dtype, first.orientations.dtype, first.forms.dtype) == (np.int32, np.uint8, np.uint8)
    assert (first.sizes.dtype, first.labels.dtype) == (np.int64, np.int64)


def test_changed_files_are_read_again(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    indexed(folder)
    Image.new("RGB", (9, 8)).save(folder / "1.png")
    os.utime(folder / "1.png", ns=(10**18, 10**18))
    assert indexed(folder).widths.tolist() == [9]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half of a file", None])
def test_damaged_cache_is_rebuilt(tmp_path, damage):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (8, 4)).save(folder / "1.png")
    indexed(folder)
    (kept,) = (tmp_path / "cache/index").iterdir()
    content = kept.read_bytes()
    kept.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert indexed(folder).widths.tolist() == [8]
    assert kept.read_bytes() == content


def test_unwritable_cache_is_survived(tmp_path, caplog):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (8, 4)).save(folder / "1.png")
    (tmp_path / "cache").write_text("a file in the way")
    assert indexed(folder).widths.tolist() == [8]
    assert "cannot be kept" in caplog.text


def test_a_pipe_does_not_block(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (8, 4)).save(folder / "1.png")
    os.mkfifo(folder / "2.png")
    assert len(indexed(folder)) == 1


def test_photos_agree_with_pillow(tmp_path):
    root = os.environ.get("HEADRACE_DATA")
    if not root or not (Path(root) / "imagenet_sample").is_dir():
        pytest.skip("HEADRACE_DATA names no folder with imagenet_sample")
    check_against_pillow(indexed(Path(root) / "imagenet_sample", tmp_path))
