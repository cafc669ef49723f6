"""Transform lists on the device: the same draws as for one image alone, and torchvision's pixels."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loaders import draws, operations
from loaders.augment import Augmentation, augment
from loaders.contract import LoaderError
from loaders.transforms import steps
from loaders.transforms.apply import Picture, apply_steps
from loaders.transforms.device import DeviceOperation, why_not
from loaders.transforms.geometry import (
    CenterCrop,
    Erasing,
    GaussianBlur,
    HorizontalFlip,
    PaddedRandomCrop,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotate90,
    Rotation,
    VerticalFlip,
)
from loaders.transforms.policies import RandAugment, TrivialAugment
from loaders.transforms.program import Untyped
from loaders.transforms.types import Operation
from loaders.transforms.values import (
    Brightness,
    Contrast,
    Grayscale,
    Hue,
    Invert,
    Normalize,
    Posterize,
    Saturation,
    Solarize,
    ToFloat,
)
from tests.images import photo

SEED, EPOCH = 2**63 + 11, 3
ORANGE = (1.0, 0.5, 0.25)
# Levels of 255 that pixels may differ by. Luma is rounded, as Pillow's, where torchvision cuts off that of tensors.
TYPED: dict[Operation, int] = {
    HorizontalFlip(): 0,
    VerticalFlip(probability=0.3): 0,
    Rotate90(1): 0,
    Rotate90(2, probability=0.5): 0,
    Rotate90(-1, probability=0.5): 0,
    Rotate90(4): 0,
    Rotation((-40.0, 90.0), ORANGE, probability=0.8): 1,
    Rotation((90.0, 90.0)): 1,
    Rotation((-60.0, 60.0), ORANGE, "nearest"): 0,
    PaddedRandomCrop((24, 24), (4, 0, 2, 5), fill=ORANGE): 0,
    PaddedRandomCrop((24, 24), (23, 9, 0, 3), "reflect", probability=0.8): 0,
    GaussianBlur(5): 1,
    GaussianBlur(1, probability=0.5): 0,
    GaussianBlur(9, (0.5, 3.0), probability=0.5): 1,
    Erasing(): 0,
    Erasing(probability=1.0, scale=(0.3, 1.0), fill=ORANGE): 0,
    Brightness((0.2, 2.5)): 0,
    Brightness((0.5, 0.5), probability=0.5): 0,
    Contrast((0.3, 1.8), probability=0.9): 2,
    Saturation((0.0, 2.0), probability=0.9): 2,
    Hue((-0.5, 0.5)): 1,
    Hue((0.0, 0.1), probability=0.4): 1,
    Grayscale(probability=0.3): 1,
    Invert(probability=0.5): 0,
    Solarize(0.5, probability=0.7): 0,
    Solarize(128 / 255): 0,
    Solarize(0.0): 0,
    Posterize(3, probability=0.7): 0,
    Posterize(8): 0,
    RandAugment(): 0,
    RandAugment(interpolation="nearest", fill=ORANGE, layers=3, magnitude=20, probability=0.8): 0,
    TrivialAugment(): 0,
}


def noisy(pixels: torch.Tensor) -> torch.Tensor:
    """Add what the generators of torch, random and numpy say."""
    noise = torch.randint(0, 9, pixels.shape, dtype=torch.uint8)
    return (pixels >> 1) + noise + random.randrange(50) + int(np.random.randint(50))


EVERYTHING = (*TYPED, Untyped(noisy), Untyped(torch.flipud, probability=0.5))


def photos(count: int, height: int = 24, width: int = 24) -> torch.Tensor:
    pixels = np.stack([np.array(photo(width, height, seed)) for seed in range(count)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def keys_of(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint64) * np.uint64(2**61 + 7919)


def on_device(images: torch.Tensor, keys: np.ndarray, *numbered: tuple[int, Operation]) -> torch.Tensor:
    chain = tuple(DeviceOperation(operation, number) for number, operation in numbered)
    return augment(images, SEED, EPOCH, keys, Augmentation(operations=chain))


def singly(images: torch.Tensor, keys: np.ndarray, number: int, operation: Operation) -> torch.Tensor:
    """Return what the images become one at a time, by torchvision."""
    results = []
    for image, key in zip(images, keys, strict=True):
        picture = Picture.of(image.permute(1, 2, 0).numpy(), "torchvision")
        apply_steps((operation.draw(SEED, EPOCH, int(key), number, picture.size),), picture, "torchvision")
        results.append(picture.pixels)
    return torch.stack(results)


def comparable(images: torch.Tensor, keys: np.ndarray, number: int, operation: Operation) -> torch.Tensor:
    """Return where rotations can be compared.

    Where image and fill meet, torchvision counts twice what the image covers of a pixel; and of two pixels that are
    as near, either may be taken.
    """
    height, width = images.shape[2:]
    result = torch.ones(len(images), 1, height, width, dtype=torch.bool)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    for row, key in enumerate(keys):
        step = operation.draw(SEED, EPOCH, int(key), number, (height, width))
        if isinstance(step, steps.Rotate):
            a, b, c, d, e, f = draws.rotation_maps(np.array([step.degrees]), height, width)[0]
            source = np.stack([a * x + b * y + c, d * x + e * y + f])
            if step.interpolation == "nearest":
                certain = np.abs(source - source.round()).min(axis=0) > 1e-3
            else:
                beyond = np.abs(source / np.array([width, height])[:, None, None] - 0.5).max(axis=0)
                certain = np.abs(beyond - 0.5) * min(width, height) > 0.6
            result[row] = torch.from_numpy(certain)
    assert result.float().mean() > 0.8
    return result


def assert_as_singly(
    got: torch.Tensor, images: torch.Tensor, keys: np.ndarray, number: int, operation: Operation
) -> None:
    apart = (got.int() - singly(images, keys, number, operation).int()).abs()
    assert (apart * comparable(images, keys, number, operation)).max() <= TYPED[operation], operation


@pytest.mark.parametrize("operation", TYPED, ids=str)
def test_a_batch_becomes_what_its_images_become_alone(operation: Operation) -> None:
    images, keys = photos(24), keys_of(24)
    assert_as_singly(on_device(images, keys, (5, operation)), images, keys, 5, operation)
    if not isinstance(operation, Rotate90 | PaddedRandomCrop):
        images = photos(6, 20, 33)
        assert_as_singly(on_device(images, keys[:6], (5, operation)), images, keys[:6], 5, operation)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(list(TYPED)), min_size=1, max_size=6))
def test_a_list_is_done_in_its_order(listed: list[Operation]) -> None:
    keys = keys_of(5)
    images = before = photos(5)
    for number, operation in enumerate(listed):
        after = on_device(before, keys, (number, operation))
        assert_as_singly(after, before, keys, number, operation)
        before = after
    assert torch.equal(on_device(images, keys, *enumerate(listed)), before)


def parameters_of(step: steps.Step, height: int, width: int) -> list[tuple[draws.Operation, list[float]]]:
    """Return what one image's step is in operations and parameters of a batch."""
    match step:
        case steps.Change(_, chosen):
            return [(change, list(values)) for change, values in chosen]
        case steps.Skip():
            return []
        case steps.Rotate(degrees, fill, interpolation):
            maps = draws.rotation_maps(np.array([degrees]), height, width)
            change = operations.affine if interpolation == "bilinear" else operations.affine_nearest
            return [(change, draws.filled(maps, fill)[0].tolist())]
        case steps.PaddedCrop((left, top, _, _), "constant", fill):
            return [(operations.shift_filled, [-left, -top, *(round(255 * value) for value in fill)])]
        case steps.PaddedCrop((left, top, _, _)):
            return [(operations.shift, [-left, -top])]
        case steps.Blur(kernel_size, sigma):
            return [(operations.blur, draws.gaussian(np.array([[sigma]]), kernel_size // 2)[0].tolist())]
        case steps.Erase((left, top, w, h), fill):
            return [(operations.erase, [left, top, left + w, top + h, *(round(255 * value) for value in fill)])]
        case steps.Brightness(factor):
            return [(operations.brightness, [factor])]
        case steps.Contrast(factor):
            return [(operations.contrast, [factor])]
        case steps.Saturation(factor):
            return [(operations.saturation, [factor])]
        case steps.Hue(turn):
            return [(operations.hue, [turn])]
        case steps.Flip(horizontally):
            return [(operations.flip_horizontally if horizontally else operations.flip_vertically, [])]
        case steps.Grayscale():
            return [(operations.grayscale, [])]
        case steps.Invert():
            return [(operations.invert, [])]
    raise TypeError(step)


def ranges(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    return st.lists(st.floats(low, high), min_size=2, max_size=2).map(lambda ends: (min(ends), max(ends)))


def random_operations() -> st.SearchStrategy[Operation]:
    chance = st.sampled_from([0.0, 0.3, 0.5, 1.0])
    color = st.tuples(*[st.floats(0, 1)] * 3)
    erasing = {"scale": ranges(0, 1), "ratio": ranges(1e-3, 1e3), "fill": color}
    return st.one_of(
        *(st.builds(kind, probability=chance) for kind in (HorizontalFlip, VerticalFlip, Grayscale, Invert)),
        *(st.builds(kind, ranges(0, 3), probability=chance) for kind in (Brightness, Contrast, Saturation)),
        st.builds(Rotation, ranges(-360, 360), color, st.sampled_from(["nearest", "bilinear"]), probability=chance),
        st.builds(GaussianBlur, st.sampled_from([1, 3, 9]), ranges(0.01, 5), probability=chance),
        st.builds(Hue, ranges(-0.5, 0.5), probability=chance),
        st.builds(Erasing, probability=chance, **erasing),
        st.builds(RandAugment, st.integers(0, 5), st.floats(0, 30), fill=color, probability=chance),
        st.builds(TrivialAugment, fill=color, probability=chance),
    )


@st.composite
def operations_and_sizes(draw: st.DrawFn) -> tuple[Operation, tuple[int, int]]:
    size = draw(st.tuples(st.integers(5, 500), st.integers(5, 500)))
    color = st.tuples(*[st.floats(0, 1)] * 3)
    borders = st.tuples(*[st.integers(0, min(size) - 1)] * 4)
    padded = st.builds(PaddedRandomCrop, st.just(size), borders, st.sampled_from(["constant", "reflect"]), color)
    return draw(st.one_of(random_operations(), padded)), size


@settings(max_examples=150, deadline=None)
@given(
    operations_and_sizes(),
    st.integers(0, 1000),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6),
)
def test_draws_are_those_of_one_image(
    chosen: tuple[Operation, tuple[int, int]], number: int, seed: int, epoch: int, keys: list[int]
) -> None:
    operation, size = chosen
    drawn = DeviceOperation(operation, number).steps(seed, epoch, np.array(keys, np.uint64), *size)
    for row, key in enumerate(keys):
        got = [(one.operation, one.parameters[one.rows == row][0]) for one in drawn if row in one.rows]
        expected = parameters_of(operation.draw(seed, epoch, key, number, size), *size)
        assert [change for change, _ in got] == [change for change, _ in expected]
        for (_, values), (_, wanted) in zip(got, expected, strict=True):
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, np.array(wanted, np.float32))


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(8)), st.integers(1, 8), st.permutations(EVERYTHING), st.booleans())
def test_an_image_depends_on_nothing_but_itself(
    order: list[int], size: int, shuffled: list[Operation], planar: bool
) -> None:
    layout = torch.contiguous_format if planar else torch.channels_last
    images, keys = photos(8, 16, 16), keys_of(8)
    whole = on_device(images, keys, *enumerate(shuffled[:6]))
    part = order[:size]
    again = on_device(images[part].contiguous(memory_format=layout), keys[part], *enumerate(shuffled[:6]))
    assert torch.equal(again, whole[part])


def test_a_padded_crop_moves_as_far_at_every_size() -> None:
    for border in ("constant", "reflect"):
        operation = DeviceOperation(PaddedRandomCrop((32, 32), (4, 4, 4, 4), border), 0)  # type: ignore[arg-type]
        for side, farthest in ((32, 4), (48, 6), (8, 1)):
            (step,) = operation.steps(0, 0, keys_of(500), side, side)
            assert (step.parameters[:, :2].min(), step.parameters[:, :2].max()) == (-farthest, farthest)


def test_an_operation_draws_by_its_number() -> None:
    images, keys = photos(6), keys_of(6)
    for operation in (Rotation((-40.0, 40.0)), Untyped(noisy)):
        first = on_device(images, keys, (1, operation))
        assert torch.equal(first, on_device(images, keys, (1, operation)))
        assert not torch.equal(first, on_device(images, keys, (2, operation)))


@pytest.mark.parametrize("operation", EVERYTHING, ids=lambda one: one.name)
def test_an_empty_batch_passes(operation: Operation) -> None:
    images = torch.empty(0, 3, 16, 16, dtype=torch.uint8)
    assert on_device(images, keys_of(0), (0, operation)).shape == images.shape


def test_functions_get_bytes_and_leave_the_generators_alone() -> None:
    seen: list[tuple[Any, ...]] = []

    def note(pixels: torch.Tensor) -> torch.Tensor:
        seen.append((pixels.dtype, tuple(pixels.shape)))
        result = noisy(pixels)
        pixels.zero_()  # its own
        return result

    images = photos(3, 20, 30)
    before = images.clone()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    result = on_device(images, keys_of(3), (0, Untyped(note)))
    assert seen == [(torch.uint8, (3, 20, 30))] * 3
    assert torch.equal(images, before)
    noise = (result - (images >> 1)).flatten(1).tolist()
    assert noise[0] != noise[1] != noise[2] != noise[0]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # type: ignore[index,union-attr]


def fail(pixels: torch.Tensor) -> torch.Tensor:
    raise KeyError("no such color")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fail, r"fail is given a tensor, uint8 \(3, 24, 24\) on cpu, and failed: KeyError: 'no such color'"),
        (lambda pixels: pixels.numpy(), "must return one like it; it returned ndarray"),
        (lambda pixels: pixels / 255, r"must return one like it; it returned float32 \(3, 24, 24\) on cpu"),
        (lambda pixels: pixels[:, 1:], r"must return one like it; it returned uint8 \(3, 23, 24\) on cpu"),
        (lambda pixels: None, "must return one like it; it returned NoneType"),
    ],
)
def test_functions_that_fail_are_named(function: Any, message: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(LoaderError, match=message):
        on_device(photos(2), keys_of(2), (0, Untyped(function)))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_the_device_cannot_do_has_a_reason() -> None:
    assert [why_not(operation) for operation in EVERYTHING] == [None] * len(EVERYTHING)
    sized = (CenterCrop((8, 8)), RandomCrop((8, 8)), RandomResizedCrop((8, 8)), Resize(8))
    for operation in (*sized, ToFloat(), Normalize((0.5,) * 3, (0.5,) * 3)):
        assert why_not(operation) == "is done by loaders or not at all"
    assert why_not(Solarize(1.1)) == "has a threshold above white"


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="Rotate90: only squares stay as large when turned, not 24 x 20 pixels"):
        on_device(photos(1, 20, 24), keys_of(1), (0, Rotate90(3)))
    with pytest.raises(ValueError, match="an image of 24 x 24 cannot be reflected so far"):
        on_device(photos(1), keys_of(1), (0, PaddedRandomCrop((24, 24), (24, 0, 0, 0), "reflect")))
    with pytest.raises(ValueError, match="a kernel of 49 pixels needs images of 25 or more, not 24 x 24"):
        on_device(photos(1), keys_of(1), (0, GaussianBlur(49)))


@pytest.mark.gpu
def test_cuda_gives_what_the_cpu_gives_and_never_waits() -> None:
    images, keys = photos(16), keys_of(16)
    cuda = images.cuda()
    for number, operation in enumerate(TYPED):
        on_device(cuda, keys, (number, operation))
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = on_device(cuda, keys, (number, operation))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        apart = (got.cpu().int() - on_device(images, keys, (number, operation)).int()).abs()
        assert apart.max() <= 1, operation


@pytest.mark.gpu
def test_cuda_functions_draw_by_the_sample() -> None:
    images, keys = photos(4).cuda(), keys_of(4)
    state = torch.cuda.get_rng_state()
    drawn = [on_device(images, keys, (0, Untyped(lambda pixels: torch.randint_like(pixels, 0, 255)))) for _ in range(2)]
    assert torch.equal(*drawn)
    assert torch.equal(torch.cuda.get_rng_state(), state)
