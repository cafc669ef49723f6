"""What every loader promises, checked on all of them against Pillow."""

from __future__ import annotations

import importlib.util
import io
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from loaders.bad_samples import BadSampleError, BadSamples, TooManyBadSamplesError
from loaders.cache import cache_dir
from loaders.contract import Batch, Loader
from loaders.dataset import ImageDataset
from loaders.pixels import load_window
from loaders.plan import EpochPlan, View, draw_batch, substitute
from tests.images import DAMAGES, damaged, dataset_of, exif, photo, photos

Factory = Callable[..., Loader]

# Mean absolute difference to Pillow, of 255, on every photo decoded at full scale. (Where a crop is at least four times
# the result a loader may decode at a smaller scale; the tests' crops are smaller.)
TOLERANCE = 0.5
PLANES_TOLERANCE = 2.0  # where chroma is resized from its own resolution, without libjpeg's enlargement before


def _torch(datasets: list[ImageDataset], num_workers: int = 0, bad_samples: BadSamples | None = None) -> Loader:
    from loaders.torch_backend import TorchLoader

    return TorchLoader(datasets, num_workers, BadSamples() if bad_samples is None else bad_samples)


def _dali(datasets: list[ImageDataset], num_workers: int = 1, bad_samples: BadSamples | None = None) -> Loader:
    from loaders.dali_backend import DaliLoader

    return DaliLoader(datasets, num_workers, BadSamples() if bad_samples is None else bad_samples)


def _ffcv(datasets: list[ImageDataset], num_workers: int = 1, bad_samples: BadSamples | None = None) -> Loader:
    from loaders.ffcv_backend import FfcvLoader

    return FfcvLoader(datasets, num_workers, BadSamples() if bad_samples is None else bad_samples)


def _roi(datasets: list[ImageDataset], num_workers: int = 1, bad_samples: BadSamples | None = None) -> Loader:
    from loaders.roi_backend import RoiLoader

    try:
        return RoiLoader(datasets, num_workers, BadSamples() if bad_samples is None else bad_samples)
    except ImportError as error:
        pytest.skip(str(error))


def _roi_device(datasets: list[ImageDataset], num_workers: int = 1, bad_samples: BadSamples | None = None) -> Loader:
    from loaders.roi_backend import RoiLoader

    try:
        return RoiLoader(
            datasets, num_workers, BadSamples() if bad_samples is None else bad_samples, resample_on="device"
        )
    except ImportError as error:
        pytest.skip(str(error))


BACKENDS: dict[str, tuple[str, Factory]] = {
    "roi": ("torch", _roi),
    "roi, resampled on the device": ("torch", _roi_device),
    "torch": ("torch", _torch),
    "dali": ("nvidia.dali", _dali),
    "ffcv": ("ffcv", _ffcv),
}


def _window_of_file(dataset: ImageDataset, index: int, window: np.ndarray, resolution: int) -> np.ndarray:
    return load_window(dataset.paths[index], window, resolution, int(dataset.orientations[index]), scaled=False)


def _window_of_beton(dataset: ImageDataset, index: int, window: np.ndarray, resolution: int) -> np.ndarray:
    from loaders.ffcv_file import JPEG_500, open_beton

    record = open_beton(dataset, JPEG_500, cache_dir()).record(index).tobytes()
    return load_window(io.BytesIO(record), window, resolution, scaled=False)


# What a backend's pixels are compared with, the bytes that it reads, decoded and resized by Pillow; and how closely.
_oracle = _window_of_file
_tolerance = TOLERANCE


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.fixture(scope="module", params=list(BACKENDS))
def create(request: pytest.FixtureRequest) -> Factory:
    module, factory = BACKENDS[request.param]
    if not _installed(module):
        pytest.skip(f"{module} is not installed")
    global _oracle, _tolerance
    _oracle = _window_of_beton if request.param == "ffcv" else _window_of_file
    _tolerance = PLANES_TOLERANCE if request.param.startswith(("ffcv", "roi")) else TOLERANCE
    return factory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("photos")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> ImageDataset:
    return dataset_of(photos(folder, 23))


def expected_pixels(dataset: ImageDataset, batch: Batch) -> Iterator[np.ndarray]:
    """Yield what Pillow makes of a batch's samples, whatever the plan said of the bad ones among them."""
    plan = draw_batch(dataset, batch.plan.view, batch.plan.seed, batch.plan.epoch, 0, batch.indices.numpy(), batch.keys)
    for index, window, flip in zip(plan.indices, plan.windows, plan.flips, strict=True):
        image = _oracle(dataset, int(index), window, plan.resolution)
        yield image[:, ::-1] if flip else image


def differences(dataset: ImageDataset, batch: Batch) -> list[float]:
    """Return the mean absolute difference to Pillow of every photo of a batch."""
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (len(batch), 3, batch.plan.resolution, batch.plan.resolution)
    actual = batch.images.permute(0, 2, 3, 1).numpy().astype(np.int64)
    expected = expected_pixels(dataset, batch)
    return [float(np.abs(a - e).mean()) for a, e in zip(actual, expected, strict=True)]


def contents(batches: Iterator[Batch]) -> list[tuple[list[int], list[int], bytes]]:
    return [(b.indices.tolist(), b.labels.tolist(), b.images.contiguous().numpy().tobytes()) for b in batches]


@pytest.mark.parametrize(
    "view",
    [
        View(48, 8),
        View(64, 8, scale=(0.02, 0.1)),
        View(56, 8, crop="padded"),
        View.evaluation(47, 8, crop_fraction=0.875),
        View.evaluation(40, 8),
        View(44, 8, crop="stretch"),
        View(40, 8, crop="random-square", crop_fraction=0.8),
        View(40, 8, crop="random-stretch", crop_fraction=0.8),
    ],
    ids=["random", "enlarged", "padded", "center", "whole", "squeezed", "placed", "squeezed and placed"],
)
def test_pixels_are_pillows(create: Factory, dataset: ImageDataset, view: View) -> None:
    with create([dataset]) as loader:
        for batch in loader.run(EpochPlan(dataset, 1, view, seed=3)):
            assert max(differences(dataset, batch)) < _tolerance


def test_every_form_of_pixels(create: Factory, tmp_path: Path) -> None:
    rgb = photo(61, 47, seed=1)
    translucent = rgb.copy()
    translucent.putalpha(photo(61, 47, seed=2).convert("L"))
    palette = rgb.quantize(64)
    gray_16 = (np.asarray(rgb.convert("L")).astype(np.uint16) * 257 + 40).clip(0, 65535).astype(np.uint16)
    paths = []

    def save(image: Image.Image, name: str, **options: Any) -> None:
        paths.append(tmp_path / name)
        image.save(paths[-1], **options)

    save(rgb, "444.jpg", quality=95, subsampling=0)
    save(rgb, "422.jpg", subsampling=1)
    save(rgb, "progressive.jpg", progressive=True)
    save(rgb.convert("L"), "gray.jpg")
    save(rgb.convert("CMYK"), "cmyk.jpg")
    save(rgb, "rgb.png")
    save(rgb.convert("L"), "gray.png")
    save(palette, "palette.png")
    save(palette, "transparent.png", transparency=5)
    save(translucent, "alpha.png")
    save(translucent.convert("LA"), "gray-alpha.png")
    save(rgb.convert("1"), "bilevel.png")
    save(Image.fromarray(gray_16), "gray16.png")
    save(rgb, "lossy.webp", quality=85)
    save(rgb, "lossless.webp", lossless=True)
    save(translucent, "alpha.webp")
    save(rgb, "24.bmp")
    save(translucent, "32.bmp")
    save(palette, "palette.bmp")
    for orientation in range(1, 9):
        save(rgb, f"phone{orientation}.jpg", exif=exif(orientation))
    save(rgb, "phone6.png", exif=exif(6))
    save(rgb, "phone8.webp", exif=exif(8))
    data = (tmp_path / "cmyk.jpg").read_bytes()
    paths.append(tmp_path / "cmyk-unmarked.jpg")
    paths[-1].write_bytes(data.replace(b"Adobe", b"Other"))

    dataset = dataset_of(paths)
    views = (View(32, 40, scale=(0.3, 0.9)), View.evaluation(40, 40))
    with create([dataset]) as loader:
        for view in views:
            (batch,) = loader.run(EpochPlan(dataset, 0, view))
            found = dict(zip(batch.indices.tolist(), differences(dataset, batch), strict=True))
            assert {paths[i].name: d for i, d in found.items() if d >= _tolerance} == {}
            assert len(found) == len(paths)


def test_labels_ids_and_layout(create: Factory, dataset: ImageDataset) -> None:
    plan = EpochPlan(dataset, 2, View(16, 5), seed=9)
    with create([dataset]) as loader:
        delivered = list(loader.run(plan))
        assert loader.describe()
    assert len(delivered) == len(plan)
    for expected, batch in zip(plan, delivered, strict=True):
        assert batch.indices.dtype == batch.labels.dtype == torch.int64
        np.testing.assert_array_equal(batch.indices.numpy(), expected.indices)
        np.testing.assert_array_equal(batch.labels.numpy(), dataset.labels[expected.indices])
        np.testing.assert_array_equal(batch.keys, expected.keys)
        order = torch.channels_last if loader.layout == "NHWC" else torch.contiguous_format
        assert batch.images.is_contiguous(memory_format=order)
        assert batch.images.device.type == loader.device.type


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_sample_once_over_all_ranks(create: Factory, dataset: ImageDataset, world: int) -> None:
    seen: list[int] = []
    with create([dataset]) as loader:
        for rank in range(world):
            plan = EpochPlan(dataset, 0, View(8, 7), rank=rank, world=world)
            seen += itertools.chain.from_iterable(batch.indices.tolist() for batch in loader.run(plan))
    assert sorted(seen) == list(range(len(dataset)))


def test_empty_share_of_the_last_batch(create: Factory, dataset: ImageDataset) -> None:
    part = dataset.select(np.arange(5))
    with create([part]) as loader:
        batches = list(loader.run(EpochPlan(part, 0, View(8, 4), rank=1, world=2)))
    assert [len(batch) for batch in batches] == [2, 0]
    assert batches[1].images.shape == (0, 3, 8, 8)


def test_same_batches_with_any_number_of_workers(create: Factory, dataset: ImageDataset) -> None:
    epochs = []
    for num_workers in (0, 1, 2, 4):
        with create([dataset], num_workers) as loader:
            epochs.append(contents(loader.run(EpochPlan(dataset, 1, View(24, 4), seed=5))))
    assert epochs[1:] == epochs[:1] * 3


def test_size_and_batch_switch_between_epochs(create: Factory, dataset: ImageDataset) -> None:
    with create([dataset], 1) as loader:
        for epoch, (resolution, batch_size) in enumerate([(24, 4), (48, 8), (32, 3), (32, 23), (24, 4)]):
            plan = EpochPlan(dataset, epoch, View(resolution, batch_size))
            for expected, batch in zip(plan, loader.run(plan), strict=True):
                assert batch.indices.tolist() == expected.indices.tolist()
                assert max(differences(dataset, batch)) < _tolerance


def test_start_in_the_middle_equals_the_tail(create: Factory, dataset: ImageDataset) -> None:
    plan = EpochPlan(dataset, 1, View(16, 4))
    with create([dataset], 1) as loader:
        whole = contents(loader.run(plan))
        assert contents(loader.run(plan.starting_at(3))) == whole[3:]
        assert contents(loader.run(plan.starting_at(plan.num_batches))) == []


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_break_then_another_epoch(create: Factory, dataset: ImageDataset, taken: int) -> None:
    second = EpochPlan(dataset, 2, View(24, 6))
    with create([dataset], 1) as loader:
        expected = contents(loader.run(second))
        abandoned = loader.run(EpochPlan(dataset, 1, View(16, 3)))
        assert len(list(itertools.islice(abandoned, taken))) == taken
        assert contents(loader.run(second)) == expected
        with pytest.raises(RuntimeError, match="another epoch was started"):
            next(abandoned)


def test_train_and_evaluation_in_one_loader(create: Factory, dataset: ImageDataset, tmp_path: Path) -> None:
    val = dataset_of(photos(tmp_path, 5, [(40, 60)]), name="val")
    with create([dataset, val], 1) as loader:
        for epoch in range(2):
            for plan in (EpochPlan(dataset, epoch, View(24, 8)), EpochPlan(val, 0, View.evaluation(32, 4))):
                for expected, batch in zip(plan, loader.run(plan), strict=True):
                    assert batch.indices.tolist() == expected.indices.tolist()
                    assert max(differences(plan.dataset, batch)) < _tolerance


def test_batches_held_stay_as_they_are(create: Factory, dataset: ImageDataset) -> None:
    with create([dataset], 1) as loader:
        held = list(loader.run(EpochPlan(dataset, 0, View(16, 3))))
        copies = [batch.images.clone() for batch in held]
        for _ in loader.run(EpochPlan(dataset, 1, View(16, 3))):
            pass
        assert all(torch.equal(batch.images, copy) for batch, copy in zip(held, copies, strict=True))
    assert all(torch.equal(batch.images, copy) for batch, copy in zip(held, copies, strict=True))


@pytest.mark.parametrize("end", ["close", "with", "del", "break and del"])
def test_nothing_runs_on(create: Factory, dataset: ImageDataset, end: str) -> None:
    def use() -> None:
        loader = create([dataset], 2)
        epoch = loader.run(EpochPlan(dataset, 0, View(16, 4)))
        next(epoch)
        if end == "close":
            loader.close()
            loader.close()
        elif end == "with":
            with loader:
                pass
        elif end == "del":
            assert len(list(epoch)) == 5
        del loader, epoch

    process = psutil.Process(os.getpid())
    use()  # what the first use leaves behind for good (a fork server, libraries' own threads) does not count
    children, threads = {child.pid for child in process.children()}, process.num_threads()
    use()
    deadline = time.monotonic() + 10  # a queue's thread may take a moment to end
    while process.num_threads() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {child.pid for child in process.children()} <= children
    assert process.num_threads() <= threads


def test_closed_loader_ends_its_epoch(create: Factory, dataset: ImageDataset) -> None:
    loader = create([dataset], 1)
    epoch = loader.run(EpochPlan(dataset, 0, View(16, 4)))
    next(epoch)
    loader.close()
    with pytest.raises(RuntimeError, match="the loader was closed"):
        next(epoch)


def _with_bad(folder: Path, damage: str) -> tuple[ImageDataset, int]:
    paths = photos(folder, 11)
    paths.insert(6, damaged(folder, damage))
    return dataset_of(paths), 6


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_training_sample_is_replaced(create: Factory, tmp_path: Path, damage: str) -> None:
    dataset, bad = _with_bad(tmp_path, damage)
    plan = EpochPlan(dataset, 0, View(16, 4, scale=(0.1, 0.3)))  # small windows, mostly above the damage
    found = BadSamples(max_fraction=0.2)
    with create([dataset], 1, found) as loader:
        for _ in range(2):
            for expected, batch in zip(plan, loader.run(plan), strict=True):
                indices = expected.indices.copy()
                for position in np.flatnonzero(indices == bad).tolist():
                    attempts = (substitute(dataset, expected, position, a).indices[0] for a in itertools.count())
                    indices[position] = next(index for index in attempts if index != bad)
                assert batch.indices.tolist() == indices.tolist()
                assert batch.labels.tolist() == dataset.labels[indices].tolist()
                assert max(differences(dataset, batch)) < _tolerance
    (sample,) = found
    assert (sample.dataset, sample.index, sample.path) == (dataset.name, bad, dataset.paths[bad])
    assert sample.reason


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_evaluation_sample_is_left_out(create: Factory, tmp_path: Path, damage: str) -> None:
    dataset, bad = _with_bad(tmp_path, damage)
    found = BadSamples(max_fraction=0.2)
    with create([dataset], 1, found) as loader:
        for _ in range(2):
            batches = list(loader.run(EpochPlan(dataset, 0, View.evaluation(16, 4, crop_fraction=0.3))))
            assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 7], [8, 9, 10, 11]]
            assert all(max(differences(dataset, batch)) < _tolerance for batch in batches)
    assert [sample.index for sample in found] == [bad]


def test_batch_of_bad_samples_only(create: Factory, tmp_path: Path) -> None:
    paths = [damaged(tmp_path, "early", "a"), damaged(tmp_path, "text", "b"), *photos(tmp_path, 2)]
    dataset = dataset_of(paths)
    found = BadSamples(max_fraction=1)
    with create([dataset], 1, found) as loader:
        batches = list(loader.run(EpochPlan(dataset, 0, View.evaluation(16, 2))))
    assert [batch.indices.tolist() for batch in batches] == [[], [2, 3]]
    assert len(found) == 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_policy_raise_names_the_file(create: Factory, tmp_path: Path, damage: str) -> None:
    dataset, bad = _with_bad(tmp_path, damage)
    with create([dataset], 1, BadSamples("raise")) as loader, pytest.raises(BadSampleError) as raised:
        list(loader.run(EpochPlan(dataset, 0, View(16, 4))))
    assert dataset.paths[bad] in str(raised.value)


def test_too_many_bad_samples(create: Factory, tmp_path: Path) -> None:
    paths = photos(tmp_path, 8) + [damaged(tmp_path, "early", f"bad{number}") for number in range(4)]
    dataset = dataset_of(paths)
    found = BadSamples(max_fraction=0.2, csv_path=tmp_path / "bad.csv")
    with create([dataset], 1, found) as loader, pytest.raises(TooManyBadSamplesError, match=r"bad\d.jpg"):
        list(loader.run(EpochPlan(dataset, 0, View(16, 4))))
    assert (tmp_path / "bad.csv").read_text().count("jpg") >= 3


def test_file_deleted_after_indexing_is_bad(create: Factory, tmp_path: Path) -> None:
    paths = photos(tmp_path, 12)
    dataset = dataset_of(paths)
    paths[4].unlink()
    found = BadSamples(max_fraction=0.1)
    with create([dataset], 1, found) as loader:
        delivered = [i for batch in loader.run(EpochPlan(dataset, 0, View(16, 4))) for i in batch.indices.tolist()]
    assert len(delivered) == 12
    assert 4 not in delivered
    assert [sample.index for sample in found] == [4]


@pytest.mark.skipif(not os.environ.get("HEADRACE_DATA"), reason="HEADRACE_DATA does not name a folder of data sets")
@pytest.mark.parametrize("resolution", [224, 128])
def test_pixels_of_real_photos(create: Factory, resolution: int) -> None:
    paths = sorted((Path(os.environ["HEADRACE_DATA"]) / "imagenet_sample").glob("*/*"))[::10]
    dataset = dataset_of(paths)
    with create([dataset], 1) as loader:
        for view in (View(resolution, 16, scale=(0.08, 1)), View(resolution, 16, scale=(0.001, 0.01))):
            for batch in loader.run(EpochPlan(dataset, 0, view)):
                windows = draw_batch(dataset, view, 0, 0, 0, batch.indices.numpy(), batch.keys).windows
                sizes = np.stack([dataset.widths, dataset.heights], 1)[batch.indices.numpy()]
                full_scale = (windows[:, 2:] * sizes).min(1) < 4 * resolution
                assert max(np.array(differences(dataset, batch))[full_scale], default=0) < _tolerance
