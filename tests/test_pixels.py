"""What a file's pixels are: conversions, orientations, crops and refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from loaders import pixels
from loaders.pixels import PixelError, decode, load_into, load_window


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth random picture, as photos are."""
    small = np.random.default_rng(seed).integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1"])
def test_other_modes_are_converted_as_pillow_does(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    picture(60, 40).convert(mode).save(path)
    assert np.array_equal(np.asarray(decode(path)), np.asarray(Image.open(path).convert("RGB")))


def test_sixteen_bit_gray_is_scaled(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64 * 4).reshape(4, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    expected = np.repeat(np.round(values / 257).astype(np.uint8)[:, :, None], 3, axis=2)
    assert np.array_equal(np.asarray(decode(tmp_path / "deep.png")), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_crops_are_taken_from_the_upright_image(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image.png"
    picture(200, 120).save(path, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(path))
    assert np.array_equal(np.asarray(decode(path)), np.asarray(expected))
    window = np.array([0.1, 0.3, 0.45, 0.5])
    left, top, width, height = window * np.array([*expected.size, *expected.size])
    crop = expected.resize((40, 40), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    difference = np.abs(np.asarray(crop, np.int16) - load_window(path, window, 40, orientation))
    assert difference.max() <= 1  # Pillow rounds between its two passes, whose order transposition swaps


@pytest.mark.parametrize("resolution", [20, 60, 300])
def test_scaled_decoding_only_where_pixels_abound(tmp_path: Path, resolution: int) -> None:
    path = tmp_path / "image.jpg"
    picture(640, 480).save(path, quality=95)
    window = np.array([0.05, 0.1, 0.9, 0.8])
    exact = load_window(path, window, resolution, scaled=False).astype(np.int16)
    scaled = load_window(path, window, resolution).astype(np.int16)
    assert np.abs(exact - scaled).mean() < 1.0
    assert np.array_equal(exact, scaled) == (4 * resolution > 0.8 * 480)


def loaded_into(path: Path, window: np.ndarray, resolution: int, **options: Any) -> np.ndarray:
    out = np.full((resolution, resolution, 3), 7, np.uint8)
    load_into(path, window, out, **options)
    return out


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("image.jpg", "RGB", {}),
        ("image.jpg", "RGB", {"quality": 95, "subsampling": 0}),
        ("image.jpg", "RGB", {"subsampling": 1, "restart_marker_blocks": 3}),
        ("image.jpg", "RGB", {"progressive": True}),
        ("image.jpg", "RGB", {"keep_rgb": True}),
        ("image.jpg", "L", {}),
        ("image.jpg", "CMYK", {}),
        ("image.png", "RGBA", {}),
        ("image.png", "P", {}),
        ("image.webp", "RGB", {}),
        ("image.bmp", "L", {}),
    ],
)
def test_loading_into_memory_gives_the_same_window(
    tmp_path: Path, name: str, mode: str, options: dict[str, Any], orientation: int, flip: bool
) -> None:
    path = tmp_path / name
    picture(211, 133).convert(mode).save(path, **options)
    for window in ([0.1, 0.3, 0.45, 0.5], [0.0, 0.0, 1.0, 1.0], [0.7, 0.02, 0.3, 0.1], [0.2, 0.6, 0.1, 0.4]):
        expected = load_window(path, np.array(window), 48, orientation)
        loaded = loaded_into(path, np.array(window), 48, flip=flip, orientation=orientation)
        difference = np.abs((expected[:, ::-1] if flip else expected).astype(np.int16) - loaded)
        assert difference.max() <= 1
        assert difference.mean() < 0.3


@pytest.mark.parametrize("resolution", [20, 60, 300])
def test_loading_into_memory_scales_decoding_alike(tmp_path: Path, resolution: int) -> None:
    path = tmp_path / "image.jpg"
    picture(640, 480).save(path, quality=95)
    window = np.array([0.05, 0.1, 0.9, 0.8])
    loaded = loaded_into(path, window, resolution).astype(np.int16)
    assert np.abs(loaded - load_window(path, window, resolution)).max() <= 1


@pytest.mark.parametrize("behind", [b"", b"\xff\xd9", bytes(40), b"\xff\xd8 a picture in a picture \xff\xd9"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_loading_into_memory_refuses_what_pillow_refuses(
    tmp_path: Path, options: dict[str, Any], behind: bytes
) -> None:
    path = tmp_path / "image.jpg"
    picture(90, 60).save(path, **options)
    content = path.read_bytes()
    window = np.array([0.2, 0.1, 0.5, 0.4])
    for length in {*range(0, len(content), 37), *range(len(content) - 5, len(content) + 1)}:
        path.write_bytes(content[:length] + behind)
        try:
            expected = load_window(path, window, 16)
        except PixelError as error:
            with pytest.raises(PixelError, match=re.escape(str(error))):
                loaded_into(path, window, 16)
        else:
            # Versions of libjpeg smooth the unfinished scans of a damaged progressive file each in their own way.
            limit = 1 if length == len(content) else 24
            assert np.abs(expected.astype(np.int16) - loaded_into(path, window, 16)).max() <= limit


def test_photos_are_loaded_alike(photos: Path) -> None:
    for path in sorted(photos.glob("*/*"))[::10]:
        window = np.array([0.21, 0.13, 0.52, 0.61])
        expected = load_window(path, window, 128).astype(np.int16)
        difference = np.abs(expected - loaded_into(path, window, 128))
        assert difference.max() <= 1
        assert difference.mean() < 0.3


def test_refusals_name_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole.jpg"
    picture(300, 200).save(whole)
    (tmp_path / "truncated.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image at all")
    picture(20, 20).save(tmp_path / "image.gif")
    for name, reason in {
        "truncated.jpg": "truncated",
        "empty.jpg": "empty",
        "text.jpg": "not a JPEG",
        "image.gif": "not a JPEG",
        "missing.jpg": "No such file",
    }.items():
        with pytest.raises(PixelError, match=reason):
            decode(tmp_path / name)
        with pytest.raises(PixelError, match=reason):
            loaded_into(tmp_path / name, np.array([0.0, 0.0, 1.0, 1.0]), 16)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PixelError, match="megapixels"):
        decode(whole)
    assert pixels.MAX_PIXELS == 200_000_000
