"""Augmentation: operations against torchvision's, draws against their distribution, each sample on its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as reference

from kernels.random import uniform
from loaders import draws, operations
from loaders.augment import PRESETS, Augmentation, augment
from loaders.draws import RAND_AUGMENT, STRONGEST, TRIVIAL_AUGMENT, Policy, PolicySpace

BLACK = (0.0, 0.0, 0.0)
EVERYTHING = Augmentation(
    crop="padded",
    rotation=20,
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    rand_augment_layers=3,
    rand_augment_magnitude=15,
    blur=0.5,
    grayscale=0.3,
    erasing=0.5,
)
NAMES = {
    Policy.IDENTITY: "Identity",
    Policy.SHEAR_X: "ShearX",
    Policy.SHEAR_Y: "ShearY",
    Policy.TRANSLATE_X: "TranslateX",
    Policy.TRANSLATE_Y: "TranslateY",
    Policy.ROTATE: "Rotate",
    Policy.BRIGHTNESS: "Brightness",
    Policy.SATURATION: "Color",
    Policy.CONTRAST: "Contrast",
    Policy.SHARPNESS: "Sharpness",
    Policy.POSTERIZE: "Posterize",
    Policy.SOLARIZE: "Solarize",
    Policy.AUTOCONTRAST: "AutoContrast",
    Policy.EQUALIZE: "Equalize",
}
# torchvision cuts fractions off where we round; its luma weights add up to 0.9999 and are cut off too.
LARGEST_DIFFERENCE = {
    **dict.fromkeys((Policy.SHEAR_X, Policy.SHEAR_Y, Policy.ROTATE), 1),
    **dict.fromkeys((Policy.BRIGHTNESS, Policy.SHARPNESS), 1),
    **dict.fromkeys((Policy.SATURATION, Policy.CONTRAST), 2),
}


def smooth_images(count: int, height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(count, 3, height // 4 + 1, width // 4 + 1, generator=torch.manual_seed(0))
    images = functional.interpolate(coarse, size=(height, width), mode="bicubic").mul(255)
    return images.clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Darken:
    """An operation of a transform list: halves the brightness of images with an even key."""

    def steps(self, seed: int, epoch: int, keys: np.ndarray, height: int, width: int) -> list[draws.Step]:
        return [draws.Step.of(operations.brightness, keys % 2 == 0, np.full((len(keys), 1), 0.5))]


def keys_of(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint64) * np.uint64(7919)


def draw_for(count: int, epoch: int = 0) -> draws.Draw:
    return partial(uniform, 0, epoch, keys_of(count))


def apply(images: torch.Tensor, steps: list[draws.Step]) -> torch.Tensor:
    result = images.clone()
    for step in steps:
        rows = torch.from_numpy(step.rows)
        result[rows] = step.operation(result[rows], torch.from_numpy(step.parameters))
    return result


def difference(one: torch.Tensor, other: torch.Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


def parameters(*values: float, count: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).expand(count, -1)


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize(
    ("space", "oracle"), [(RAND_AUGMENT, v2.RandAugment), (TRIVIAL_AUGMENT, v2.TrivialAugmentWide)]
)
def test_policies_are_torchvisions(policy: Policy, space: PolicySpace, oracle: Any) -> None:
    images = smooth_images(4, 48, 40)
    peer = oracle(interpolation=InterpolationMode.BILINEAR)
    magnitudes, signed = peer._AUGMENTATION_SPACE[NAMES[policy]]
    table = magnitudes(STRONGEST + 1, 48, 40)
    for level in (0, 5, 9, 20, 30):
        for sign in (-1, 1):
            magnitude = 0.0 if table is None else float(table[level]) * (sign if signed else 1)
            want = peer._apply_image_or_video_transform(
                images, NAMES[policy], magnitude, InterpolationMode.BILINEAR, peer._fill
            )
            one_each = np.ones(len(images))
            steps = draws.policy_steps(
                policy * one_each, level / STRONGEST * one_each, sign * one_each, space, 48, 40, BLACK
            )
            assert difference(apply(images, steps), want) <= LARGEST_DIFFERENCE.get(policy, 0)


def test_rotation_is_torchvisions() -> None:
    images = smooth_images(8, 31, 40)
    steps = draws.rotation(draw_for(8), 45.0, 31, 40, BLACK)
    degrees = 45 * (2 * draw_for(8)(draws.Stream.ROTATION, 1)[:, 0] - 1)
    for got, image, angle in zip(apply(images, steps), images, degrees, strict=True):
        assert difference(got, reference.rotate(image, float(angle), InterpolationMode.BILINEAR)) <= 1


def test_geometric_operations_bring_in_the_fill() -> None:
    fill = (10 / 255, 200 / 255, 90 / 255)
    images = torch.tensor([10, 200, 90], dtype=torch.uint8)[None, :, None, None].expand(6, 3, 20, 24)
    assert torch.equal(apply(images, draws.rotation(draw_for(6), 90.0, 20, 24, fill)), images)


@pytest.mark.parametrize("turn", [-0.5, -0.21, -0.03, 0.0, 0.1, 0.34, 0.5])
def test_hue_is_torchvisions(turn: float) -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(1))
    images[0] = images[0, :1]  # gray
    assert difference(operations.hue(images, parameters(turn, count=4)), reference.adjust_hue(images, turn)) <= 1


def test_brightness_contrast_and_saturation_together_are_one_after_the_other() -> None:
    images = smooth_images(4, 24, 24) // 4 + 96  # far from the ends of the range, which the steps would clip at
    together = operations.enhance(images, parameters(1.1, 0.7, 1.3, count=4))
    singly = reference.adjust_brightness(images.float() / 255, 1.1)
    singly = reference.adjust_saturation(reference.adjust_contrast(singly, 0.7), 1.3) * 255
    assert (together - singly).abs().max() < 1


def test_factors_of_one_change_nothing() -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(1))
    assert torch.equal(operations.enhance(images, parameters(1, 1, 1, count=4)), images)
    assert torch.equal(operations.sharpness(images, parameters(1, count=4)), images)
    assert torch.equal(operations.hue(images, parameters(0, count=4)), images)


def test_color_jitter_draws_within_its_strengths() -> None:
    enhance, hue = draws.color_jitter(draw_for(4000), (0.4, 1.5, 0.2, 0.1))
    low, high = enhance.parameters.min(axis=0), enhance.parameters.max(axis=0)
    np.testing.assert_allclose(low, [0.6, 0, 0.8], atol=0.01)
    np.testing.assert_allclose(high, [1.4, 2.5, 1.2], atol=0.01)
    np.testing.assert_allclose([hue.parameters.min(), hue.parameters.max()], [-0.1, 0.1], atol=0.001)


def test_blur_is_torchvisions() -> None:
    images = smooth_images(6, 20, 25)
    (step,) = draws.blur(draw_for(6), 1.0, 20, 25)
    sigmas = 0.1 + 1.9 * draw_for(6)(draws.Stream.BLUR, 2)[:, 1]
    for got, image, sigma in zip(apply(images, [step]), images, sigmas, strict=True):
        assert difference(got, reference.gaussian_blur(image, [13, 13], [float(sigma)])) <= 1


@pytest.mark.parametrize("side", [1, 2, 5])
def test_tiny_images_pass_everything(side: int) -> None:
    images = torch.full((8, 3, side, side), 77, dtype=torch.uint8)
    augmentation = replace(EVERYTHING, blur=1.0, erasing=1.0)
    assert augment(images, 0, 0, keys_of(8), augmentation).shape == images.shape
    assert torch.equal(apply(images, draws.blur(draw_for(8), 1.0, side, side)), images)


def test_grayscale_is_pillows_luma() -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.manual_seed(1))
    gray = operations.grayscale(images, torch.empty(4, 0))
    assert (gray == gray[:, :1]).all()
    for got, image in zip(gray, images, strict=True):
        luma = np.asarray(reference.to_pil_image(image).convert("L"))
        assert np.abs(got[0].numpy().astype(int) - luma).max() <= 1


@pytest.mark.parametrize("move", [(0, 0), (3, -2), (-9, 11), (9, -11), (40, 2)])
def test_shift_with_a_fill_brings_it_in_at_the_border(move: tuple[int, int]) -> None:
    right, down = move
    images = torch.randint(0, 256, (2, 3, 12, 10), dtype=torch.uint8, generator=torch.manual_seed(1))
    fill = np.array([10, 200, 90], np.uint8)
    padded = np.tile(fill[:, None, None], (2, 1, 112, 110))
    padded[:, :, 50:62, 50:60] = images
    want = padded[:, :, 50 - down : 62 - down, 50 - right : 60 - right]
    assert np.array_equal(operations.shift_filled(images, parameters(right, down, *fill, count=2)), want)


@pytest.mark.parametrize("move", [(0, 0), (3, -2), (-9, 11), (9, -11)])
def test_shift_reflects_at_the_border(move: tuple[int, int]) -> None:
    right, down = move
    images = torch.randint(0, 256, (2, 3, 12, 10), dtype=torch.uint8, generator=torch.manual_seed(1))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (11, 11), (9, 9)), mode="reflect")
    want = padded[:, :, 11 - down : 23 - down, 9 - right : 19 - right]
    assert np.array_equal(operations.shift(images, parameters(right, down, count=2)), want)


def test_shifts_are_whole_pixels_up_to_the_padding() -> None:
    (step,) = draws.shift(draw_for(3000), 1 / 8, 32, 64)
    horizontal, vertical = np.unique(step.parameters[:, 0]), np.unique(step.parameters[:, 1])
    assert np.array_equal(horizontal, np.arange(-8, 9))
    assert np.array_equal(vertical, np.arange(-4, 5))


def test_erasing_is_drawn_as_published() -> None:
    count, side = 2000, 64
    boxes = draws.erasing(draw_for(count), 0.25, side, side)
    erased = boxes[boxes.any(axis=1)]
    assert abs(len(erased) / count - 0.25) < 0.04
    left, top, right, bottom = erased.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= side).all()
    assert (bottom <= side).all()
    area = (right - left) * (bottom - top) / side**2
    assert area.min() > 0.01
    assert area.max() < 0.35
    assert 0.12 < area.mean() < 0.21


def test_policies_are_drawn_evenly() -> None:
    count = 14_000
    steps = draws.trivial_augment(draw_for(count), 30, 32, 32, BLACK)
    drawn = {step.operation: len(step.rows) for step in steps}
    assert abs(drawn[operations.affine] - 5000) < 300
    assert abs(drawn[operations.enhance] - 3000) < 250
    for operation in (operations.sharpness, operations.posterize, operations.solarize, operations.equalize):
        assert abs(drawn[operation] - 1000) < 150


@pytest.mark.parametrize("augmentation", [*PRESETS.values(), EVERYTHING])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_sample_depends_on_nothing_but_itself(augmentation: Augmentation, layout: torch.memory_format) -> None:
    images = smooth_images(40, 64, 64)
    keys = keys_of(40)
    together = augment(images.contiguous(memory_format=layout), 3, 1, keys, augmentation)
    singly = torch.cat([augment(images[i : i + 1], 3, 1, keys[i : i + 1], augmentation) for i in range(40)])
    assert torch.equal(together, singly)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12), st.integers(0, 5))
def test_any_part_of_a_batch_in_any_order_gives_the_same_images(order: list[int], size: int, epoch: int) -> None:
    images, keys = smooth_images(12, 16, 16), keys_of(12)
    part = order[:size]
    whole = augment(images, 0, epoch, keys, EVERYTHING)
    assert torch.equal(augment(images[part], 0, epoch, keys[part], EVERYTHING), whole[part])


def test_draws_change_with_seed_and_epoch() -> None:
    images, keys = smooth_images(8, 16, 16), keys_of(8)
    first = augment(images, 0, 0, keys, EVERYTHING)
    assert torch.equal(first, augment(images, 0, 0, keys, EVERYTHING))
    assert not torch.equal(first, augment(images, 0, 1, keys, EVERYTHING))
    assert not torch.equal(first, augment(images, 1, 0, keys, EVERYTHING))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_and_input_stay(layout: torch.memory_format) -> None:
    images = smooth_images(6, 16, 16).contiguous(memory_format=layout)
    before = images.clone()
    result = augment(images, 0, 0, keys_of(6), EVERYTHING)
    assert torch.equal(images, before)
    assert result.stride() == images.stride()
    assert result.dtype == torch.uint8


@pytest.mark.parametrize("name", ["none", "light"])
def test_presets_of_the_loader_alone_copy_nothing(name: str) -> None:
    images = smooth_images(4, 16, 16)
    assert augment(images, 0, 0, keys_of(4), PRESETS[name]) is images


@pytest.mark.parametrize("augmentation", [*PRESETS.values(), EVERYTHING])
def test_an_empty_batch_passes(augmentation: Augmentation) -> None:
    images = torch.empty(0, 3, 16, 16, dtype=torch.uint8)
    assert augment(images, 0, 0, keys_of(0), augmentation).shape == (0, 3, 16, 16)


def test_keys_must_match_the_images() -> None:
    with pytest.raises(ValueError, match="4 images need as many keys, got 3"):
        augment(smooth_images(4, 16, 16), 0, 0, keys_of(3), PRESETS["strong"])


def test_scaling_weakens_regularization_and_keeps_the_crop() -> None:
    strong = PRESETS["strong"]
    half = strong.scaled(0.5)
    assert (half.rand_augment_magnitude, half.erasing, half.mixup, half.cutmix) == (4.5, 0.125, 0.1, 0.5)
    assert (half.crop, half.scale, half.ratio, half.flip) == (strong.crop, strong.scale, strong.ratio, strong.flip)
    assert half.rand_augment_layers == strong.rand_augment_layers
    assert Augmentation(color_jitter=0.4).scaled(0.5).jitter_strengths == (0.2, 0.2, 0.2, 0.0)
    assert PRESETS["standard"].scaled(0.5).trivial_augment_magnitude == 15
    with pytest.raises(ValueError, match="from 0 to 1"):
        strong.scaled(1.5)


@pytest.mark.parametrize("augmentation", [*PRESETS.values(), EVERYTHING])
def test_full_strength_is_the_augmentation_itself(augmentation: Augmentation) -> None:
    images, keys = smooth_images(8, 16, 16), keys_of(8)
    assert torch.equal(augment(images, 0, 0, keys, augmentation), augment(images, 0, 0, keys, augmentation.scaled(1)))


def test_operations_of_a_list_come_last_and_keep_their_strength() -> None:
    images, keys = smooth_images(8, 16, 16), np.arange(8, dtype=np.uint64)
    rotated = augment(images, 0, 0, keys, Augmentation(rotation=30))
    augmentation = Augmentation(rotation=30, operations=(Darken(),))
    for strength in (0.0, 1.0):
        result = augment(images, 0, 0, keys, augmentation.scaled(strength))
        assert torch.equal(result[::2], rotated[::2] // 2)
        assert torch.equal(result[1::2], rotated[1::2])


@pytest.mark.parametrize("augmentation", [*PRESETS.values(), Augmentation(crop_fraction=0.875)])
def test_the_view_has_the_part_that_loaders_do(augmentation: Augmentation) -> None:
    view = augmentation.view(96, 32, balanced=True, drop_last=True)
    for name in ("crop", "scale", "ratio", "crop_fraction", "flip"):
        assert getattr(view, name) == getattr(augmentation, name)
    assert (view.resolution, view.batch_size, view.shuffle) == (96, 32, True)
    assert (view.balanced, view.drop_last) == (True, True)
    view = augmentation.view(96, 32)
    assert (view.balanced, view.drop_last) == (False, False)


def test_no_strength_leaves_no_mixing_and_no_erasing() -> None:
    off = PRESETS["strong"].scaled(0)
    assert not off.mixes
    assert off.erasing == 0


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"erasing": 1.5}, "from 0 to 1"),
        ({"blur": -0.1}, "from 0 to 1"),
        ({"rand_augment_magnitude": 31}, "from 0 to 30"),
        ({"mixup": -1.0}, "0 .off. or positive"),
        ({"cutmix": float("nan")}, "0 .off. or positive"),
        ({"rand_augment_layers": -1}, "0 .off. or more"),
        ({"rand_augment_layers": 2, "trivial_augment": True}, "set rand_augment_layers to 0"),
        ({"padding": 1.0}, "from 0 to below 1"),
        ({"crop_fraction": 0.0}, "above 0 and at most 1"),
        ({"rotation": 200.0}, "from 0 to 180"),
        ({"color_jitter": (0.1, 0.2)}, "one number, three"),
        ({"color_jitter": (0.1, 0.2, 0.3, 0.6)}, r"at most 0\.5"),
        ({"color_jitter": -0.1}, "not be negative"),
    ],
)
def test_contradictions_are_refused_with_the_fix(options: dict[str, Any], fix: str) -> None:
    with pytest.raises(ValueError, match=fix):
        Augmentation(**options)


@pytest.mark.gpu
@pytest.mark.parametrize("augmentation", [*PRESETS.values(), EVERYTHING])
def test_cuda_gives_what_the_cpu_gives_and_never_waits(augmentation: Augmentation) -> None:
    images, keys = smooth_images(32, 48, 48), keys_of(32)
    on_device = images.cuda()
    augment(on_device, 0, 0, keys, augmentation)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = augment(on_device, 0, 0, keys, augmentation)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    apart = (got.cpu().int() - augment(images, 0, 0, keys, augmentation).int()).abs()
    assert apart.float().mean() < 0.05  # a rounding here and there, which posterize and equalize may enlarge
