"""Near duplicates: copies are found whatever was done to their bytes, and a common background makes none."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from engine import doctor_similar
from engine.doctor_similar import most_similar, no_thumbnails, thumbnails
from tests.images import photo


def thumbnails_of(images: list[Image.Image]) -> torch.Tensor:
    pixels = [np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)) for image in images]
    return thumbnails(torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2).copy()))


def compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def sky(seed: int) -> Image.Image:
    """A gradient with a camera's noise: most neighbors differ by less than that."""
    noise = np.random.default_rng(seed).normal(0, 3, (120, 160, 3))
    return Image.fromarray((np.linspace(40, 230, 120)[:, None, None] + noise).clip(0, 255).astype(np.uint8))


PHOTOS = [photo(160, 120, seed) for seed in range(12)]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda image: compressed(image, 40), id="recompressed"),
        pytest.param(lambda image: compressed(image.resize((112, 84), Image.Resampling.LANCZOS), 75), id="smaller"),
        pytest.param(lambda image: image.point(lambda value: min(255, 1.05 * value)), id="brighter"),
        pytest.param(lambda image: image.convert("L"), id="gray"),
    ],
)
def test_copies_are_found(change: Callable[[Image.Image], Image.Image]) -> None:
    originals = [*PHOTOS, sky(0)]
    places, similarities, compared = most_similar(thumbnails_of(originals), thumbnails_of(list(map(change, originals))))
    assert places.tolist() == list(range(len(originals)))
    assert similarities.min() > 0.995
    assert compared == len(originals)


def test_a_common_background_is_no_likeness() -> None:
    """Most of each picture is the same black, and most of what shows is the same white."""
    pictures = []
    for seed in range(40):
        inside = np.random.default_rng(seed).integers(200, 256, (6, 6)).astype(np.uint8)
        picture = Image.new("L", (96, 96))
        picture.paste(Image.fromarray(inside).resize((48, 48), Image.Resampling.NEAREST), (24, 24))
        pictures.append(picture)
    one, other = thumbnails_of(pictures[:20]), thumbnails_of(pictures[20:])
    assert torch.corrcoef(torch.cat([one, other]).float().flatten(1)).min() > 0.96
    assert set(most_similar(one, other)[0].tolist()) == {-1}


def test_every_part_has_to_agree() -> None:
    original = np.asarray(PHOTOS[0].resize((64, 64)).convert("L")).copy()
    changed = original.copy()
    changed[40:56, 40:56] = changed[40:56, 40:56].T  # on 6 % of it
    pictures = thumbnails_of([Image.fromarray(pixels) for pixels in (original, changed)])
    places, _, _ = most_similar(pictures[:1], pictures[1:])
    assert places.tolist() == [-1]


def test_flat_pictures_look_like_nothing() -> None:
    flat = thumbnails_of([Image.new("RGB", (40, 40), (level,) * 3) for level in (100, 101)])
    places, similarities, compared = most_similar(flat[:1], flat[1:])
    assert (places.tolist(), similarities.tolist(), compared) == ([-1], [0.0], 1)


def test_blocks_change_nothing_and_end_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    train = thumbnails_of(PHOTOS)
    val = thumbnails_of([compressed(image, 60) for image in reversed(PHOTOS)])
    whole = most_similar(train, val)
    monkeypatch.setattr(doctor_similar, "_VAL_BLOCK", 5)
    monkeypatch.setattr(doctor_similar, "_TRAIN_BLOCK", 7)
    parts = most_similar(train, val)
    assert (whole[0].tolist(), whole[2]) == (parts[0].tolist(), parts[2])
    assert whole[1] == pytest.approx(parts[1])
    assert most_similar(train, val, deadline=0.0)[2] == 0  # of no image with all
    monkeypatch.setattr(doctor_similar, "_TRAIN_BLOCK", 12)
    places, _, compared = most_similar(train, val, deadline=0.0)
    assert compared == 5
    assert places.tolist() == [*range(11, 6, -1), *[-1] * 7]


def test_nothing_looks_like_nothing() -> None:
    some = thumbnails_of(PHOTOS[:1])
    assert most_similar(no_thumbnails(), some)[2] == 1
    assert most_similar(some, no_thumbnails())[2] == 0
