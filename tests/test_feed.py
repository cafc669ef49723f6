"""The loaders in one's own loop: epochs, sizes, shares, and going on where one stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from loaders import ImageLoader
from loaders.augment import Augmentation
from loaders.dataset import ImageDataset
from tests.images import damaged, dataset_of, photos

TO_FLOAT = [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    return dataset_of(photos(tmp_path_factory.mktemp("photos"), 26))


def test_epochs_differ_and_repeat_by_number(dataset: ImageDataset) -> None:
    with ImageLoader(dataset, resolution=24, batch_size=8, num_workers=1) as loader:
        assert len(loader) == 4
        first, second = list(loader), list(loader)
        loader.set_epoch(0)
        again = list(loader)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], second[0][0])
    images, labels = first[0]
    assert images.shape == (8, 3, 24, 24)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64
    assert abs(float(images.mean())) < 2


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_going_on_in_the_middle_of_an_epoch(dataset: ImageDataset, backend: str) -> None:
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    options = {"resolution": 24, "batch_size": 4, "num_workers": 1, "augment": "strong", "loader": backend}
    with ImageLoader(dataset, **options) as loader:  # type: ignore[arg-type]
        whole = [list(loader) for _ in range(2)]
    with ImageLoader(dataset, **options) as loader:  # type: ignore[arg-type]
        list(loader)
        for number, _ in enumerate(loader):
            if number == 2:
                state = loader.state_dict()
                break
    with ImageLoader(dataset, **options) as loader:  # type: ignore[arg-type]
        loader.load_state_dict(state)
        rest = list(loader)
    assert len(rest) == 4
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(rest, whole[1][3:], strict=True))


def test_size_and_batch_change_between_epochs(dataset: ImageDataset) -> None:
    with ImageLoader(dataset, resolution=24, batch_size=8, num_workers=1) as loader:
        list(loader)
        loader.resolution, loader.batch_size = 40, 13
        assert [tuple(images.shape) for images, _ in loader] == [(13, 3, 40, 40)] * 2


def test_mixed_targets_are_shares(dataset: ImageDataset) -> None:
    with ImageLoader(dataset, resolution=24, batch_size=26, num_workers=0, augment="strong") as loader:
        _, targets = next(iter(loader))
    assert targets.shape == (26, len(dataset.classes))
    torch.testing.assert_close(targets.sum(1), torch.ones(26))


def test_evaluation_is_in_order_and_repeats(dataset: ImageDataset) -> None:
    with ImageLoader(dataset, resolution=24, batch_size=8, train=False, num_workers=1) as loader:
        labels = torch.cat([labels for _, labels in loader])
        images = next(iter(loader))[0]
        again = next(iter(loader))[0]
    assert torch.equal(labels, torch.from_numpy(dataset.labels))
    assert torch.equal(images, again)


def test_a_transform_list_is_followed(dataset: ImageDataset, caplog: pytest.LogCaptureFixture) -> None:
    compose = v2.Compose(
        [v2.RandomHorizontalFlip(), v2.RandomResizedCrop(24), v2.Lambda(torch.bitwise_not), v2.ToImage(), *TO_FLOAT]
    )
    with caplog.at_level("INFO", "headrace"), ImageLoader(dataset, augment=compose, num_workers=0) as loader:
        assert loader.resolution == 24
        images, _ = next(iter(loader))
    assert images.shape == (26, 3, 24, 24)
    assert [record.message for record in caplog.records] == [
        "RandomResizedCrop and HorizontalFlip: by the loader, while decoding",
        "Lambda: by a call for each image in the training process, which is slow",
        "ToFloat, Normalize: on the device, in one pass",
    ]
    plain = Augmentation(crop="random-resized", scale=(0.08, 1.0), flip=0.5)
    with ImageLoader(dataset, resolution=24, augment=plain, mean=(0, 0, 0), std=(1, 1, 1), num_workers=0) as loader:
        expected, _ = next(iter(loader))
    torch.testing.assert_close(1 - (images * 0.5 + 0.5), expected)
    with ImageLoader(dataset, augment=compose, resolution=16, mean=(0, 0, 0), num_workers=0) as loader:
        assert next(iter(loader))[0].shape == (26, 3, 16, 16)


def test_a_transform_list_for_evaluation(dataset: ImageDataset) -> None:
    compose = [v2.Resize(32), v2.CenterCrop(24), *TO_FLOAT]
    with ImageLoader(dataset, augment=compose, train=False, batch_size=26, num_workers=0) as loader:
        images, labels = next(iter(loader))
        again, _ = next(iter(loader))
    assert torch.equal(labels, torch.from_numpy(dataset.labels))
    assert torch.equal(images, again)
    with pytest.raises(ValueError, match="nothing makes images of one size"):
        ImageLoader(dataset, augment=TO_FLOAT)
    with pytest.raises(ValueError, match="give a resolution"):
        ImageLoader(dataset, augment="light")


def test_a_list_without_a_normalize_leaves_pixels_in_0_to_1(
    dataset: ImageDataset, caplog: pytest.LogCaptureFixture
) -> None:
    crop = v2.RandomResizedCrop(24)
    batches = []
    for listed in ([crop], [crop, v2.ToDtype(torch.float32, scale=True)]):
        with ImageLoader(dataset, augment=listed, num_workers=0) as loader:
            batches.append(next(iter(loader))[0])
    assert torch.equal(*batches)
    assert 0 <= batches[0].min() < batches[0].max() <= 1
    with (
        caplog.at_level("INFO", "headrace"),
        ImageLoader(dataset, augment=[crop], mean=(0.5,) * 3, std=(0.5,) * 3, num_workers=0) as loader,
    ):
        torch.testing.assert_close(next(iter(loader))[0], 2 * batches[0] - 1)
    assert "pixels are in 0..1" not in caplog.text
    with caplog.at_level("INFO", "headrace"), ImageLoader(dataset, augment=[crop], num_workers=0):
        assert "no Normalize among the transforms: pixels are in 0..1" in caplog.text


def test_what_may_change_is_chosen(dataset: ImageDataset) -> None:
    bicubic = [v2.RandomResizedCrop(24, interpolation=v2.InterpolationMode.BICUBIC)]
    with pytest.raises(ValueError, match='let it be bilinear; or allow it by reorder="approx"'):
        ImageLoader(dataset, augment=bicubic)
    with pytest.raises(ValueError, match="reorder is off, exact or approx"):
        ImageLoader(dataset, augment=bicubic, reorder="all")  # type: ignore[arg-type]
    with ImageLoader(dataset, augment=bicubic, reorder="approx", num_workers=0) as loader:
        assert loader.resolution == 24


def test_images_of_one_size_need_no_resize(tmp_path: Path) -> None:
    dataset = dataset_of([*photos(tmp_path, 4, [(32, 32)]), damaged(tmp_path, "empty")])
    with ImageLoader(dataset, augment=[v2.RandomCrop(32, padding=4), *TO_FLOAT], num_workers=0) as loader:
        assert loader.resolution == 32
        assert next(iter(loader))[0].shape == (5, 3, 32, 32)


def test_a_state_of_other_data_is_refused(dataset: ImageDataset, tmp_path: Path) -> None:
    other = dataset_of(photos(tmp_path, 3))
    with (
        ImageLoader(dataset, resolution=24, num_workers=0) as one,
        ImageLoader(other, resolution=24, num_workers=0) as two,
        pytest.raises(ValueError, match="other data"),
    ):
        two.load_state_dict(one.state_dict())
