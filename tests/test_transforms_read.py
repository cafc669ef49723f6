"""Transform lists from torchvision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import v2

from loaders.transforms.apply import BACKENDS, run
from loaders.transforms.geometry import (
    Affine,
    CenterCrop,
    Erasing,
    GaussianBlur,
    HorizontalFlip,
    PaddedRandomCrop,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotation,
    VerticalFlip,
)
from loaders.transforms.planner import plan
from loaders.transforms.policies import RandAugment, Together, TrivialAugment
from loaders.transforms.program import Untyped
from loaders.transforms.read import read_compose
from loaders.transforms.values import (
    Autocontrast,
    Brightness,
    Contrast,
    Equalize,
    Grayscale,
    Hue,
    Invert,
    Normalize,
    Posterize,
    Saturation,
    Sharpness,
    Solarize,
    ToFloat,
)
from tests.images import photo
from tests.transform_costs import PixelCosts
from tests.transform_lists import MEAN, STD, image, untouched


@pytest.mark.filterwarnings("ignore:The transform .ToTensor")
@pytest.mark.parametrize("version", [v1, v2])
def test_a_compose_is_read(version: Any) -> None:
    compose = version.Compose(
        [
            version.RandomResizedCrop(96, scale=(0.25, 1)),
            version.Compose([version.RandomHorizontalFlip(0.3), version.RandomVerticalFlip(0.2)]),
            version.RandomRotation(10, interpolation=version.InterpolationMode.BILINEAR, fill=255),
            version.RandomRotation((0, 5)),
            version.ColorJitter(0.4, 0.3, (0.5, 0.9), 0.1),
            version.RandomGrayscale(0.2),
            version.RandomApply([version.GaussianBlur(5, (0.1, 1))], 0.4),
            version.RandomSolarize(128, 0.1),
            version.RandomPosterize(4, 0.1),
            version.RandomInvert(0.1),
            version.ToTensor(),
            version.Normalize(MEAN, STD),
            version.RandomErasing(0.25),
        ]
    )
    assert read_compose(compose).operations == (
        RandomResizedCrop((96, 96), (0.25, 1)),
        HorizontalFlip(probability=0.3),
        VerticalFlip(probability=0.2),
        Rotation((-10.0, 10.0), (1.0, 1.0, 1.0)),
        Rotation((0.0, 5.0), interpolation="nearest"),
        Brightness((0.6, 1.4)),
        Contrast((0.7, 1.3)),
        Saturation((0.5, 0.9)),
        Hue((-0.1, 0.1)),
        Grayscale(probability=0.2),
        GaussianBlur(5, (0.1, 1.0), probability=0.4),
        Solarize(128 / 255, probability=0.1),
        Posterize(4, probability=0.1),
        Invert(probability=0.1),
        ToFloat(),
        Normalize(MEAN, STD),
        Erasing(probability=0.25, fill=MEAN),  # zero behind the normalization
    )


def test_what_is_unknown_stays_as_it_is() -> None:
    odd = [
        v2.RandomRotation(10, expand=True),
        v2.RandomRotation(10, interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomCrop(32, padding=4, padding_mode="edge"),
        v2.RandomCrop(32, pad_if_needed=True),
        v2.Resize(32, antialias=False),
        v2.Resize(32, interpolation=0),
        v2.Resize(32, max_size=50),
        v2.RandAugment(num_magnitude_bins=10),
        v2.RandomAffine(5, center=(1, 1)),
        v2.RandomApply([v2.ColorJitter(0.1, 0.1), v2.RandomErasing()], 0.5),
        v2.RandomApply([v2.ColorJitter(0.1, 0.1), v2.Lambda(untouched)], 0.5),
        v2.ToDtype(torch.float64, scale=True),
        v2.RandomErasing(value="random"),
        v2.GaussianBlur((3, 5)),
        v2.Grayscale(1),
        v2.Lambda(untouched),
        untouched,
    ]
    operations = read_compose([v2.ToImage(), v2.CenterCrop(40), v2.Resize((20, 30)), *odd]).operations
    assert operations[:2] == (CenterCrop((40, 40)), Resize((20, 30)))
    assert [operation.function for operation in operations[2:]] == odd  # type: ignore[attr-defined]
    reasons = [operation.reason for operation in operations[2:]]  # type: ignore[attr-defined]
    assert all(reasons[:-2]) and not any(reasons[-2:])
    assert reasons[5] == "with the interpolation nearest"
    with pytest.raises(ValueError, match="cannot be called"):
        read_compose([3])
    with pytest.raises(ValueError, match="before it"):
        read_compose([v2.Normalize(MEAN, STD)])


@pytest.mark.parametrize("version", [v1, v2])
def test_crops_of_padded_images_are_read(version: Any) -> None:
    sides = {"padding": (1, 2, 3, 4), "fill": (255, 0, 51)}
    expected = PaddedRandomCrop((32, 32), (1, 2, 3, 4), "constant", (1.0, 0.0, 0.2))
    assert read_compose(version.RandomCrop(32, **sides)).operations == (expected,)
    reflected = PaddedRandomCrop((32, 32), (4, 2, 4, 2), "reflect")
    assert read_compose(version.RandomCrop(32, (4, 2), padding_mode="reflect")).operations == (reflected,)
    assert read_compose([version.Pad(**sides), version.RandomCrop(32)]).operations == (expected,)
    assert read_compose(version.RandomCrop(32, 0)).operations == (RandomCrop((32, 32)),)
    assert isinstance(read_compose([version.Pad(4), version.Grayscale(3)]).operations[0], Untyped)


@pytest.mark.parametrize("version", [v1, v2])
def test_a_pad_passes_flips_where_its_border_is_as_wide_on_either_side(version: Any) -> None:
    crop, across, down = (
        version.RandomCrop((20, 32)),
        version.RandomHorizontalFlip(1.0),
        version.RandomVerticalFlip(1.0),
    )
    for padding, flips in (((0, 0, 8, 0), [across]), ((0, 8, 0, 0), [down]), ((4, 8, 4, 0), [across, down])):
        apart = read_compose([version.Pad(padding), *flips, crop]).operations
        assert [operation.name for operation in apart] == [
            "Pad", *(one.name for one in read_compose(flips).operations), "RandomCrop"
        ]  # fmt: skip
    for padding, flips in (((4, 0, 4, 0), [across]), ((0, 8, 0, 0), [across]), ((8, 0, 0, 0), [down])):
        compose = [version.Pad(padding, fill=128), *flips, crop]
        left, top, right, bottom = padding
        program = read_compose(compose)
        assert program.operations[-1] == PaddedRandomCrop(
            (20, 32), (left, top, right, bottom), "constant", (128 / 255,) * 3
        )
        small = image(32 - left - right, 20 - top - bottom)
        expected = np.array(version.Compose(compose)(Image.fromarray(small)))
        done = run(plan(program, PixelCosts(), small.shape[:2], mode="off"), small).levels()
        np.testing.assert_array_equal(done, expected)


class OwnCrop(v2.RandomCrop):
    """A crop of the user's that does something else."""


class OwnFlip(v2.RandomHorizontalFlip):
    """A flip of the user's that does something else."""


def test_what_is_derived_from_torchvisions_is_the_users_own() -> None:
    for listed in ([v2.Pad(4), OwnCrop(32)], [v2.Pad(4), OwnFlip(), v2.RandomCrop(32)], [OwnFlip()]):
        named = [operation.name for operation in read_compose(listed).operations if isinstance(operation, Untyped)]
        assert named[-1] in ("OwnCrop", "OwnFlip")


def test_a_fill_may_differ_by_type() -> None:
    gray = (127 / 255,) * 3
    for fill in ({tv_tensors.Image: 127, "others": 0}, {tv_tensors.Image: 127, tv_tensors.Mask: 1}, {"others": 127}):
        transforms = [v2.RandomRotation(9, fill=fill), v2.RandomAffine(9, fill=fill), v2.RandomCrop(9, 2, fill=fill)]
        assert [one.fill for one in read_compose(transforms).operations] == [gray] * 3  # type: ignore[attr-defined]
    (converted,) = read_compose(v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)).operations
    assert converted == ToFloat()
    for fill in ({tv_tensors.Mask: 127}, {tv_tensors.Image: 127, torch.Tensor: 0}):
        (odd,) = read_compose(v2.RandomRotation(9, fill=fill)).operations
        assert isinstance(odd, Untyped)
        assert "with fills for no type of images, or of several values" in odd.reason


@pytest.mark.parametrize("version", [v1, v2])
def test_no_antialias_is_what_tensors_make_of_none(version: Any) -> None:
    for transform in (version.Resize(9, antialias=None), version.RandomResizedCrop(9, antialias=None)):
        (odd,) = read_compose(transform).operations
        assert isinstance(odd, Untyped)
        assert odd.reason == "with antialias=None"


def test_one_number_stands_for_all_channels() -> None:
    assert read_compose([v1.ToTensor(), v1.Normalize(0.5, 0.25)]).operations[1] == Normalize((0.5,) * 3, (0.25,) * 3)
    assert read_compose([v1.ToTensor(), v1.Normalize(MEAN, 0.25)]).operations[1] == Normalize(MEAN, (0.25,) * 3)
    with pytest.raises(ValueError, match="Normalize has an option that cannot be read: "):
        read_compose([v1.ToTensor(), v1.Normalize(object(), 0.5)])


def test_conversions_that_change_nothing_are_left_out() -> None:
    conversions = [v2.ToDtype(torch.uint8), v1.ConvertImageDtype(torch.uint8), v1.ToPILImage("RGB"), v2.ToPILImage()]
    floats = [v2.ToDtype(torch.float32), v1.ConvertImageDtype(torch.float32)]
    assert read_compose([*conversions, v1.ToTensor(), *floats]).operations == (ToFloat(),)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([v1.ToTensor(), v1.ToPILImage(), v1.ToTensor()], "ToPILImage turns floating-point pixels back into bytes"),
        ([v1.ToTensor(), v2.ToDtype(torch.uint8, scale=True)], "ToDtype turns floating-point pixels back into bytes"),
        ([v2.ToDtype(torch.float32), v2.Normalize(MEAN, STD)], "ToDtype without scale=True: .* give it scale=True"),
        ([v2.Normalize(MEAN, STD)], r"put ToFloat \(ToTensor, or ToDtype\(torch.float32, scale=True\)\) before it"),
        ([v2.RandomApply([v2.ToDtype(torch.float32, scale=True)]), v2.Normalize(MEAN, STD)], "RandomApply of ToFloat"),
    ],
)
def test_contradictions_are_explained(transforms: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_compose(transforms)


def test_conversions_now_and_then_are_not_read() -> None:
    for one in (v2.Normalize(MEAN, STD), v2.RandomErasing(1.0, value="random")):
        (_, odd) = read_compose([v1.ToTensor(), v2.RandomApply([one], 0.3)]).operations
        assert isinstance(odd, Untyped)
        assert odd.instead
    always = read_compose([v1.ToTensor(), v2.RandomApply([v2.Normalize(MEAN, STD)], 1.0)])
    assert always.operations == (ToFloat(), Normalize(MEAN, STD))


def test_what_can_be_scripted_is_a_list() -> None:
    crop, flip = v2.RandomResizedCrop(32), v2.RandomHorizontalFlip()
    assert read_compose(nn.Sequential(crop, nn.Sequential(flip))) == read_compose([crop, flip])
    jitter = [v1.ColorJitter(0.1), v1.RandomInvert(0.5)]
    for inside in (nn.ModuleList(jitter[:1]), [v1.Compose(jitter[:1])], [nn.Sequential(*jitter[:1])]):
        assert read_compose(v1.RandomApply(inside, 0.3)).operations == (Brightness((0.9, 1.1), probability=0.3),)
    assert read_compose(v1.RandomApply(jitter[1:], 0.3)).operations == (Invert(probability=0.15),)
    own = nn.Sequential(v1.ConvertImageDtype(torch.float32), nn.Conv2d(3, 3, 1))
    assert [operation.name for operation in read_compose(own).operations] == ["Sequential"]


def test_what_happens_together_is_read() -> None:
    (read,) = read_compose(v2.RandomApply([v2.ColorJitter(0.1, 0.2), v2.GaussianBlur(3, (0.5, 1))], 0.3)).operations
    assert read == Together(
        (Brightness((0.9, 1.1)), Contrast((0.8, 1.2)), GaussianBlur(3, (0.5, 1.0))), probability=0.3
    )
    assert read.name == "Brightness+Contrast+GaussianBlur"


@pytest.mark.parametrize("version", [v1, v2])
def test_policies_are_read(version: Any) -> None:
    modes = version.InterpolationMode
    policies = [version.RandAugment(3, 12, interpolation=modes.BILINEAR, fill=[51.0]), version.TrivialAugmentWide()]
    assert read_compose(policies).operations == (
        RandAugment(3, 12, fill=(0.2, 0.2, 0.2)),
        TrivialAugment(interpolation="nearest"),
    )
    assert isinstance(read_compose([v1.ToTensor(), policies[0]]).operations[1], Untyped)


@pytest.mark.parametrize("version", [v1, v2])
def test_operations_of_policies_are_read_alone(version: Any) -> None:
    bilinear = version.InterpolationMode.BILINEAR
    transforms = [
        version.RandomAffine(10),
        version.RandomAffine((0, 5), (0.1, 0.2), (0.9, 1.2), (-1, 1, 2, 3), bilinear, 51),
        version.RandomAdjustSharpness(2, 0.3),
        version.RandomAutocontrast(),
        version.RandomEqualize(0.2),
    ]
    assert read_compose(transforms).operations == (
        Affine(degrees=(-10.0, 10.0), interpolation="nearest"),
        Affine(
            degrees=(0.0, 5.0),
            translation=(0.1, 0.2),
            scale=(0.9, 1.2),
            shear_x=(-1.0, 1.0),
            shear_y=(2.0, 3.0),
            fill=(0.2, 0.2, 0.2),
        ),
        Sharpness(2, probability=0.3),
        Autocontrast(probability=0.5),
        Equalize(probability=0.2),
    )


@pytest.mark.parametrize("interpolation", [3, "bicubic", v2.InterpolationMode.BICUBIC, Image.Resampling.BICUBIC])
def test_interpolations_have_several_names(interpolation: Any) -> None:
    assert read_compose(v2.Resize(9, interpolation=interpolation)).operations == (Resize(9, "bicubic"),)


@pytest.mark.parametrize("backend", BACKENDS)
def test_programs_do_what_torchvision_does(backend: str) -> None:
    compose = v2.Compose(
        [v2.ToImage(), v2.Resize(40), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    pixels = image(80, 61)
    expected = compose(photo(80, 61)).permute(1, 2, 0).numpy()
    chosen = plan(read_compose(compose), PixelCosts(), (61, 80), backend)
    result = run(chosen, pixels).pixels.permute(1, 2, 0).numpy()
    assert np.abs(result - expected).max() * max(STD) * 255 <= 3
