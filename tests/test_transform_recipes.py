"""Transform lists as people write them: read, split, and the same images from every loader."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import transforms as v1
from torchvision.transforms import v2

from loaders import ImageLoader
from loaders.dataset import ImageDataset
from loaders.transforms import Plan, Program, plan, read_compose, run, split_for_engine
from loaders.transforms.engine_split import SplitError, describe
from loaders.transforms.geometry import (
    Affine,
    Erasing,
    GaussianBlur,
    PaddedRandomCrop,
    Resize,
    Rotate90,
    Rotation,
    VerticalFlip,
)
from loaders.transforms.legality import Swap
from loaders.transforms.planner import legal_orders, ordered
from loaders.transforms.policies import RandAugment, Together, TrivialAugment
from loaders.transforms.types import Operation
from loaders.transforms.values import (
    Autocontrast,
    Brightness,
    Contrast,
    Equalize,
    Grayscale,
    Hue,
    Invert,
    Saturation,
    Sharpness,
    ToFloat,
)
from tests.images import dataset_of, photo
from tests.transform_costs import PixelCosts
from tests.transform_lists import MEAN, NORMALIZE, STD

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SIZES = [(90, 70), (64, 80), (52, 52), (100, 61)]
to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
tensor = v1.ToTensor()  # v2's own warns that it is old


@dataclass(frozen=True)
class Recipe:
    """A transform list and what it has to become.

    Attributes:
        crop: kind, resolution and fraction of the windows.
        device: names of what is left for the device.
        image_size: of all images, if it matters.
    """

    transforms: Any
    crop: tuple[str, int, float]
    flip: float
    device: list[str]
    normalization: tuple[Any, Any] = (MEAN, STD)
    image_size: tuple[int, int] | None = None


JITTER = ["Brightness", "Contrast", "Saturation"]
RECIPES = {
    "ImageNet, torchvision's reference": Recipe(
        v2.Compose(
            [
                v2.RandomResizedCrop(176, antialias=True),
                v2.RandomHorizontalFlip(0.5),
                v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR),
                v2.PILToTensor(),
                v2.ToDtype(torch.float, scale=True),
                v2.Normalize(MEAN, STD),
                v2.RandomErasing(0.1),
                v2.ToPureTensor(),
            ]
        ),
        ("random-resized", 176, 1.0),
        0.5,
        ["TrivialAugment", "Erasing"],
    ),
    "ImageNet, PyTorch's example": Recipe(
        v1.Compose([v1.RandomResizedCrop(224), v1.RandomHorizontalFlip(), tensor, v1.Normalize(MEAN, STD)]),
        ("random-resized", 224, 1.0),
        0.5,
        [],
    ),
    "ImageNet, evaluation": Recipe(
        v1.Compose([v1.Resize(256), v1.CenterCrop(224), tensor, v1.Normalize(MEAN, STD)]),
        ("center", 224, 0.875),
        0.0,
        [],
    ),
    "ImageNet, timm's": Recipe(
        [
            v1.RandomResizedCrop(224, (0.08, 1.0), (3 / 4, 4 / 3), v1.InterpolationMode.BILINEAR),
            v1.RandomHorizontalFlip(p=0.5),
            v1.RandAugment(2, 9, interpolation=v1.InterpolationMode.BILINEAR, fill=[124.0, 116.0, 104.0]),
            v1.ColorJitter(0.4, 0.4, 0.4),
            tensor,
            v1.Normalize(MEAN, STD),
            v1.RandomErasing(0.25),
        ],
        ("random-resized", 224, 1.0),
        0.5,
        ["RandAugment", *JITTER, "Erasing"],
    ),
    "CIFAR, ResNets": Recipe(
        v1.Compose(
            [v1.RandomCrop(32, padding=4), v1.RandomHorizontalFlip(), tensor, v1.Normalize(CIFAR_MEAN, CIFAR_STD)]
        ),
        ("center", 32, 1.0),
        0.5,
        ["RandomCrop with padding"],
        (CIFAR_MEAN, CIFAR_STD),
        (32, 32),
    ),
    "CIFAR, reflected": Recipe(
        [
            *to_float,
            v2.Normalize(CIFAR_MEAN, CIFAR_STD),
            v2.RandomCrop(32, padding=4, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
        ],
        ("center", 32, 1.0),
        0.5,
        ["RandomCrop with padding"],
        (CIFAR_MEAN, CIFAR_STD),
        (32, 32),
    ),
    "CIFAR, a tutorial's": Recipe(
        [v1.Pad(4), v1.RandomHorizontalFlip(), v1.RandomCrop(32), tensor],
        ("center", 32, 1.0),
        0.5,
        ["RandomCrop with padding"],
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        (32, 32),
    ),
    "CIFAR, enlarged": Recipe(
        [v1.Resize(224), v1.RandomHorizontalFlip(), tensor, v1.Normalize((0.5,), (0.5,))],
        ("center", 224, 1.0),
        0.5,
        [],
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        (32, 32),
    ),
    "squeezed": Recipe(
        [
            v1.Resize((128, 128)),
            v1.RandomHorizontalFlip(),
            v1.RandomRotation(15),
            v1.ColorJitter(brightness=0.2, contrast=0.2),
            tensor,
            v1.Normalize([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ],
        ("stretch", 128, 1.0),
        0.5,
        ["Rotation", "Brightness", "Contrast"],
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ),
    "fine-grained": Recipe(
        [v1.Resize((600, 600)), v1.RandomCrop((448, 448)), v1.RandomHorizontalFlip(), tensor, v1.Normalize(MEAN, STD)],
        ("random-stretch", 448, 448 / 600),
        0.5,
        [],
    ),
    "AlexNet's": Recipe(
        [v2.Resize(256), v2.RandomCrop(224), v2.RandomHorizontalFlip(), *to_float, v2.Normalize(MEAN, STD)],
        ("random-square", 224, 0.875),
        0.5,
        [],
    ),
    "self-supervised": Recipe(
        [
            v2.RandomResizedCrop(96, scale=(0.2, 1.0)),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], 0.5),
            v2.RandomSolarize(128, 0.2),
            v2.RandomHorizontalFlip(),
            *to_float,
            v2.Normalize(MEAN, STD),
        ],
        ("random-resized", 96, 1.0),
        0.5,
        ["Brightness+Contrast+Saturation+Hue", "Grayscale", "GaussianBlur", "Solarize"],
    ),
    "badly ordered": Recipe(
        v1.Compose([tensor, v1.Normalize(MEAN, STD), v1.RandomHorizontalFlip(), v1.RandomResizedCrop(224)]),
        ("random-resized", 224, 1.0),
        0.5,
        [],
    ),
    "faces": Recipe(
        [v1.RandomHorizontalFlip(), v1.CenterCrop(178), v1.Resize(64), tensor],
        ("center", 64, 1.0),
        0.5,
        [],
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        (218, 178),
    ),
    "MNIST": Recipe(
        [v1.Grayscale(3), tensor, v1.Normalize((0.1307,), (0.3081,))],
        ("center", 28, 1.0),
        0.0,
        ["Grayscale"],
        ((0.1307,) * 3, (0.3081,) * 3),
        (28, 28),
    ),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """Photos without what JPEG loses, so that only resizing can differ."""
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        photo(*size, seed=number).save(folder / f"{number}.png")
    return dataset_of(sorted(folder.iterdir()))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_recipes_are_split(recipe: Recipe) -> None:
    program = read_compose(recipe.transforms)
    for given_plan in (program, plan(program, PixelCosts(), recipe.image_size or (375, 500))):
        split = split_for_engine(given_plan, image_size=recipe.image_size)
        augmentation = split.augmentation
        assert (augmentation.crop, split.resolution) == recipe.crop[:2]
        assert augmentation.crop_fraction == pytest.approx(recipe.crop[2])
        assert augmentation.flip == recipe.flip
        assert [one.operation.name for one in augmentation.operations] == recipe.device  # type: ignore[attr-defined]
        assert (split.mean, split.std) == recipe.normalization
        assert not any("slow" in line for line in describe(split))


@pytest.mark.parametrize(
    "transforms",
    [
        [v2.Resize((40, 40))],
        [v2.Resize((44, 44)), v2.CenterCrop(36)],
        [v2.Resize(48), v2.CenterCrop(40)],
        [v2.Resize(64), v2.CenterCrop(48), v2.RandomCrop(48), v2.RandomHorizontalFlip(1.0)],
        [v2.Resize((32, 32)), v2.RandomVerticalFlip(1.0), v2.Grayscale(3)],
    ],
    ids=["squeezed", "squeezed and cut", "center", "mirrored", "gray"],
)
def test_images_are_torchvisions(dataset: ImageDataset, transforms: list[Any]) -> None:
    compose = v2.Compose([*transforms, *to_float, v2.Normalize(MEAN, STD)])
    with ImageLoader(dataset, augment=compose, train=False, batch_size=len(SIZES), num_workers=0) as loader:
        ((images, _),) = loader
    for number, (size, image) in enumerate(zip(SIZES, images, strict=True)):
        expected = compose(photo(*size, seed=number))
        levels = (image - expected).abs() * torch.tensor(STD)[:, None, None] * 255
        # Where the margins of a center are odd, torchvision's is half a pixel off.
        assert levels.mean() < (4 if "CenterCrop" in str(transforms) else 1), size


DEVICE_OPERATIONS: list[Operation] = [
    Brightness((0.6, 1.4)),
    Contrast((0.6, 1.4)),
    Saturation((0.6, 1.4)),
    Hue((-0.1, 0.1)),
    Grayscale(probability=0.5),
    Invert(probability=0.5),
    VerticalFlip(),
    Rotation((-30, 30), (0.5, 0.2, 0.1)),
    Rotation((-30, 30), interpolation="nearest"),
    GaussianBlur(5),
    Erasing(fill=(0.2, 0.8, 0.0)),
    PaddedRandomCrop((40, 40), (4, 2, 4, 6), fill=(0.0, 0.4, 1.0)),
    PaddedRandomCrop((40, 40), (4, 2, 4, 6), "reflect"),
    Affine(
        degrees=(-20, 20),
        translation=(0.1, 0.2),
        scale=(0.8, 1.3),
        shear_x=(-10, 5),
        shear_y=(0, 8),
        fill=(0.5, 0.2, 0.1),
        interpolation="nearest",
    ),
    Together((Contrast((0.6, 1.4)), Rotation((0, 20), interpolation="nearest"), Invert()), probability=0.5),
    Sharpness(1.8),
    Autocontrast(),
    Equalize(probability=0.5),
    RandAugment(interpolation="nearest"),
    TrivialAugment(),
]
STEADY = [operation for operation in DEVICE_OPERATIONS if not operation.has_jumps]


def differences(dataset: ImageDataset, given: Program | Plan, seed: int) -> list[float]:
    """Return for each image by how much it differs from the program done as written, on average, of 255."""
    with ImageLoader(dataset, augment=given, train=False, batch_size=len(SIZES), num_workers=0, seed=seed) as loader:
        ((images, _),) = loader
    program = given.program if isinstance(given, Plan) else given
    written = plan(program, PixelCosts(), mode="off")
    normalized = program.normalization is not None
    mean, std = (MEAN, STD) if normalized else ((0.0,) * 3, (1.0,) * 3)
    levels = (images.permute(0, 2, 3, 1) * torch.tensor(std) + torch.tensor(mean)) * 255
    photos = [np.array(photo(*size, seed=number)) for number, size in enumerate(SIZES)]
    expected = [run(written, one, seed=seed, index=number).levels() for number, one in enumerate(photos)]
    return [float(np.abs(a - e).mean()) for a, e in zip(levels.numpy(), expected, strict=True)]


def bound(operations: list[Operation]) -> float:
    """Return by how much images may differ on average.

    torchvision's tensors blend corners of a rotation twice, and cut off the luma, which takes a level from what is gray
    already, each time anew.
    """
    rotations = sum(isinstance(one, Rotation) and one.interpolation == "bilinear" for one in operations)
    lumas = sum(isinstance(one, Grayscale | Saturation | Contrast) for one in operations)
    return 1.2 + 3 * rotations + max(0, lumas - 1)


@pytest.mark.parametrize("operation", DEVICE_OPERATIONS, ids=lambda operation: operation.name)
def test_the_device_does_what_an_operation_says(dataset: ImageDataset, operation: Operation) -> None:
    program = Program((Resize((40, 40)), operation, ToFloat()))
    assert max(differences(dataset, program, seed=3)) < bound([operation])


@settings(max_examples=30, deadline=None)
@given(chosen=st.permutations(STEADY), count=st.integers(1, 4), data=st.data(), seed=st.integers(0, 99))
def test_programs_that_are_split_do_what_they_say(
    dataset: ImageDataset, chosen: list[Operation], count: int, data: st.DataObject, seed: int
) -> None:
    operations = data.draw(st.permutations([Resize((40, 40)), *chosen[:count], ToFloat()]))
    if data.draw(st.booleans()):
        operations.insert(data.draw(st.integers(operations.index(ToFloat()) + 1, len(operations))), NORMALIZE)
    try:
        split_for_engine(Program(tuple(operations)))
    except SplitError:
        return
    assert max(differences(dataset, Program(tuple(operations)), seed)) < bound(operations)


ONE_SIDED: list[Operation] = [  # of none of which the draws are those of its mirror image
    Rotation((10, 30), (0.5, 0.2, 0.1)),
    Affine(degrees=(10, 20), shear_y=(0, 8), interpolation="nearest"),
    PaddedRandomCrop((40, 40), (0, 0, 12, 16)),
]


@settings(max_examples=30, deadline=None)
@given(
    one_sided=st.sampled_from(ONE_SIDED),
    other=st.sampled_from([Brightness((0.6, 0.9)), Hue((-0.1, 0.1)), Rotate90(1), GaussianBlur(5)]),
    chance=st.sampled_from([0.5, 1.0]),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_plans_that_are_split_do_what_was_written(
    dataset: ImageDataset, one_sided: Operation, other: Operation, chance: float, data: st.DataObject, seed: int
) -> None:
    moving = [one_sided, other, VerticalFlip(probability=chance)]  # others are alike in distribution alone
    operations = (Resize((40, 40)), *data.draw(st.permutations(moving)), ToFloat())
    orders = list(legal_orders(operations, Swap.EXACT, "torchvision"))
    planned = ordered(Program(operations), data.draw(st.sampled_from(orders)), PixelCosts(), (70, 90), "torchvision")
    assert max(differences(dataset, planned, seed)) < bound(list(operations))


@pytest.mark.parametrize("backend", ["dali", "roi", "ffcv"])
def test_every_loader_follows_a_list(dataset: ImageDataset, backend: str) -> None:
    module = {"dali": "nvidia", "ffcv": "ffcv", "roi": "torch"}[backend]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{backend} is not installed")
    compose = [v2.RandomHorizontalFlip(), v2.Resize(48), v2.RandomCrop(40), v2.ColorJitter(0.4, 0.4), *to_float]
    batches = []
    for loader_name in ("torch", backend):
        with ImageLoader(dataset, augment=compose, loader=loader_name, batch_size=4, num_workers=1) as loader:
            batches.append(next(iter(loader)))
    (expected, expected_labels), (images, labels) = batches
    assert torch.equal(labels, expected_labels)
    assert (images - expected).abs().mean() * 255 < 3
