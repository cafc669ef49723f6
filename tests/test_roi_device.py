"""The region loader with its resampling on the device: the same loader with the resampling on the CPU is the oracle."""

from __future__ import annotations

import contextlib
import gc
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.command import load_config
from engine.config import ConfigError
from kernels.device_regions import Regions, regions_fit
from kernels.jpeg import JpegLibraryError, load_library
from loaders import roi_backend, roi_device
from loaders.bad_samples import BadSamples
from loaders.contract import Batch
from loaders.dataset import ImageDataset
from loaders.plan import EpochPlan, View, draw_batch
from loaders.registry import create_loader
from loaders.roi_backend import RoiLoader
from loaders.roi_device import PlanesJob, used_bytes
from loaders.roi_jobs import Worker
from tests.images import damaged, dataset_of, exif, photo, photos
from tests.jpegs import SAMPLINGS, encode
from tests.packed_photos import contents, opened

try:
    load_library()
except JpegLibraryError as error:
    pytest.skip(str(error), allow_module_level=True)

MEAN, MOST = 0.1, 1  # how far the two may be apart, of 255: on average, and all but 1 % of the values
VIEWS = [
    View(48, 6),
    View(24, 6, scale=(0.5, 1)),
    View(64, 6, scale=(0.02, 0.1)),
    View(32, 6, crop="padded"),
    View.evaluation(47, 6, crop_fraction=0.875),
]
IDS = ["random", "reduced", "enlarged", "padded", "center"]


def create(
    dataset: ImageDataset, resample_on: str = "device", threads: int = 2, found: BadSamples | None = None
) -> RoiLoader:
    bad_samples = BadSamples(max_fraction=0.5) if found is None else found
    return RoiLoader([dataset], threads, bad_samples, torch.device("cpu"), 2, resample_on)  # type: ignore[arg-type]


def batches(dataset: ImageDataset, view: View, resample_on: str, epoch: int = 0) -> list[Batch]:
    with create(dataset, resample_on) as loader:
        return list(loader.run(EpochPlan(dataset, epoch, view)))


def assert_alike(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare batches of images, sample by sample."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    for number, difference in enumerate((actual.int() - expected.int()).abs().float()):
        assert float(difference.mean()) <= MEAN, number
        assert float(difference.quantile(0.99)) <= MOST, number


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """JPEGs of every sampling, with and without restart markers, progressive, gray, and turned every way."""
    folder = tmp_path_factory.mktemp("files")
    for number, sampling in enumerate(SAMPLINGS):
        for interval in (0, 3):
            record = encode(np.asarray(photo(150 - number, 121 + number, number)), sampling, interval)
            (folder / f"{sampling.replace(':', '')}-{interval}.jpg").write_bytes(record.tobytes())
    photo(161, 120, 8).save(folder / "progressive.jpg", quality=90, progressive=True)
    for orientation in range(1, 9):
        photo(131, 110, orientation).save(folder / f"turned{orientation}.jpg", quality=90, exif=exif(orientation))
    return dataset_of(sorted(folder.iterdir()))


@pytest.fixture(scope="module")
def packed(packed_set: Path) -> ImageDataset:
    return opened(packed_set)


@pytest.mark.parametrize("view", VIEWS, ids=IDS)
@pytest.mark.parametrize("kind", ["files", "packed"])
def test_as_resampled_on_the_cpu(request: pytest.FixtureRequest, kind: str, view: View) -> None:
    dataset: ImageDataset = request.getfixturevalue(kind)
    for actual, expected in zip(batches(dataset, view, "device"), batches(dataset, view, "cpu"), strict=True):
        assert actual.indices.tolist() == expected.indices.tolist()
        assert actual.labels.tolist() == expected.labels.tolist()
        assert actual.images.is_contiguous()
        assert_alike(actual.images, expected.images)


def test_what_goes_to_the_device_fits(files: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0

    def resample(regions: Regions, resolution: int) -> torch.Tensor:
        nonlocal seen
        seen += len(regions)
        assert regions_fit(regions).all()
        assert regions.planes[:, 0, 0].unique().numel() == len(regions), "each sample has its own place"
        return torch.zeros(len(regions), 3, resolution, resolution, dtype=torch.uint8)

    monkeypatch.setattr(roi_device, "resample_regions", resample)
    for view in VIEWS:
        batches(files, view, "device")
    assert seen == len(files) * len(VIEWS)


def names(dataset: ImageDataset) -> list[str]:
    return [Path(dataset.paths[index]).name for index in range(len(dataset))]


def test_no_more_than_the_filters_reach_is_uploaded(files: ImageDataset) -> None:
    plan = draw_batch(files, View(16, 19, scale=(0.1, 0.3)), 0, 0, 0, np.arange(19), np.arange(19, dtype=np.uint64))
    route = roi_device.DeviceResampler(torch.device("cpu"), 1)
    job = route.begin(files, plan, {}, True)
    job.work(Worker())
    assert job.finished.is_set()
    assert job.error is None
    sides = plan.windows[:, 2:] * np.stack([files.widths, files.heights], 1)
    reached = (sides + 2 * np.maximum(sides / 16, 1) + 5).prod(1)  # pixels, and chroma's samples if they are as many
    planes = np.where([name.startswith(("gray", "444")) for name in names(files)], 3, 2)
    assert used_bytes(job.buffers[0]) <= (planes * reached + 64).sum()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """What compiled code reads, what it leaves to Pillow, and a file that Pillow refuses."""
    folder = tmp_path_factory.mktemp("mixed")
    paths = photos(folder, 6)
    photo(61, 47, 1).save(folder / "a.png")
    photo(61, 47, 2).convert("CMYK").save(folder / "b.jpg")
    return dataset_of([paths[0], folder / "a.png", *paths[1:4], damaged(folder, "early"), folder / "b.jpg", *paths[4:]])


BAD = 5  # its number among the mixed


@pytest.mark.parametrize("batch_size", [2, 9])
def test_what_pillow_reads_is_exact(mixed: ImageDataset, batch_size: int) -> None:
    found = BadSamples(max_fraction=0.5)
    for view in (View(32, batch_size), View.evaluation(32, batch_size)):
        with create(mixed, found=found) as on_device, create(mixed, "cpu") as on_cpu:
            pairs = list(zip(*(loader.run(EpochPlan(mixed, 1, view)) for loader in (on_device, on_cpu)), strict=True))
        delivered = []
        for actual, expected in pairs:
            assert actual.indices.tolist() == expected.indices.tolist()
            assert_alike(actual.images, expected.images)
            for position, index in enumerate(actual.indices.tolist()):
                if index in (1, 6):
                    assert torch.equal(actual.images[position], expected.images[position])
            delivered += actual.indices.tolist()
        assert len(delivered) == len(mixed) - view.is_evaluation
        assert BAD not in delivered
    assert [sample.index for sample in found] == [BAD]


def test_batches_of_which_pillow_reads_all(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        photo(40, 30, number).save(path)
    dataset = dataset_of(paths)
    on_device, on_cpu = (batches(dataset, View(16, 2), where) for where in ("device", "cpu"))
    assert contents(iter(on_device)) == contents(iter(on_cpu))


def test_the_same_batches_with_any_number_of_threads_and_buffers(
    mixed: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roi_backend, "usable_cores", lambda: 4.0)
    plan = EpochPlan(mixed, 1, View(24, 4))
    epochs = []
    for threads, first_factor in ((1, 2), (4, 2), (4, 0), (2, 0)):
        monkeypatch.setattr(roi_device, "_FIRST_FACTOR", first_factor)
        with create(mixed, threads=threads) as loader:
            epochs += [contents(loader.run(plan)), contents(loader.run(plan))]
    assert epochs[1:] == epochs[:1] * 7


def test_a_buffer_that_is_full_is_followed_by_another(files: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = batches(files, View(40, 19), "device")
    monkeypatch.setattr(roi_device, "_FIRST_FACTOR", 0)
    made: list[PlanesJob] = []
    begin = roi_device.DeviceResampler.begin
    with create(files) as loader:
        monkeypatch.setattr(
            roi_device.DeviceResampler, "begin", lambda *arguments: made.append(begin(*arguments)) or made[-1]
        )
        for _ in range(2):
            (batch,) = loader.run(EpochPlan(files, 0, View(40, 19)))
            assert torch.equal(batch.images, expected[0].images)
    assert len(made[0].buffers) > 1
    assert len(made[1].buffers) == 1, "the next batch has what the last one took"


def test_start_in_the_middle_equals_the_tail(mixed: ImageDataset) -> None:
    plan = EpochPlan(mixed, 1, View(16, 2))
    with create(mixed) as loader:
        whole = contents(loader.run(plan))
        for begin in range(plan.num_batches + 1):
            assert contents(loader.run(plan.starting_at(begin))) == whole[begin:]


def test_leaving_an_epoch_and_closing(files: ImageDataset) -> None:
    plan = EpochPlan(files, 0, View(16, 4))
    loader = create(files)
    expected = contents(loader.run(plan))
    abandoned = loader.run(plan)
    next(abandoned)
    assert contents(loader.run(plan)) == expected
    with pytest.raises(RuntimeError, match="another epoch was started"):
        next(abandoned)
    loader.close()
    with loader:
        assert contents(loader.run(plan)) == expected
    del loader, abandoned
    gc.collect()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace-roi")]


def test_where_it_is_resampled_is_told(files: ImageDataset) -> None:
    with create_loader("roi", [files], 1, BadSamples(), "cpu", resample_on="device") as loader:
        assert loader.describe().endswith("resampled on cpu")
        assert loader.device == torch.device("cpu")
    with create(files, "cpu") as loader:
        assert "resampled" not in loader.describe()


def test_the_option_is_for_this_loader() -> None:
    assert load_config(["--loader", "roi", "--roi-resample", "device"]).loader.roi_resample == "device"
    for other in ("torch", "dali", "auto"):
        with pytest.raises(ConfigError, match=f"--roi-resample device is for --loader roi, not {other}"):
            load_config(["--loader", other, "--roi-resample", "device"])


class Event:
    """Stands for the end of a copy, which has not come before it is said."""

    passed = False

    def record(self, stream: object) -> None:
        pass

    def query(self) -> bool:
        return self.passed

    def synchronize(self) -> None:
        Event.passed = True


def test_memory_is_kept_until_it_is_copied(files: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    route = roi_device.DeviceResampler(torch.device("cpu"), 1)
    monkeypatch.setattr(Event, "passed", False)
    monkeypatch.setattr(route, "_stream", object())
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    plan = draw_batch(files, View(16, 4), 0, 0, 0, np.arange(4), np.arange(4, dtype=np.uint64))

    def send_one() -> int:
        job = route.begin(files, plan, {}, True)
        job.work(Worker())
        route.send(job)
        route.send(job)  # once is enough
        return int(job.buffers[0].samples.ctypes.data)

    places = [send_one() for _ in range(3)]
    assert len(set(places)) == 3
    assert len(route._being_copied) == 3
    route.close()
    assert not route._being_copied
    assert send_one() in places


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["files", "mixed"])
def test_on_cuda_as_on_the_cpu(request: pytest.FixtureRequest, kind: str) -> None:
    dataset: ImageDataset = request.getfixturevalue(kind)
    for view in VIEWS:
        found = BadSamples(max_fraction=0.5)
        with RoiLoader([dataset], 2, found, torch.device("cuda"), 2, "device") as loader:
            assert loader.device == torch.device("cuda", torch.cuda.current_device())
            for actual, expected in zip(
                loader.run(EpochPlan(dataset, 1, view)), batches(dataset, view, "device", epoch=1), strict=True
            ):
                assert actual.images.device == loader.device
                assert actual.indices.tolist() == expected.indices.tolist()
                difference = (actual.images.cpu().int() - expected.images.int()).abs()
                assert difference.numel() == 0 or int(difference.max()) <= 1


@pytest.mark.gpu
def test_memory_is_not_used_again_while_it_is_copied(files: ImageDataset) -> None:
    """What waits behind other work of the loader's stream is uploaded from memory that nobody has written since."""
    plan = EpochPlan(files, 0, View(64, 4))
    with RoiLoader([files], 2, BadSamples(), torch.device("cuda"), 2, "device") as loader:
        expected = [batch.images.cpu() for batch in loader.run(plan)]
        assert isinstance(loader._route, roi_device.DeviceResampler)
        with torch.cuda.stream(loader._route._stream):
            torch.cuda._sleep(1 << 30)  # about half a second
        delivered = [batch.images for batch in loader.run(plan)]
        assert all(torch.equal(images.cpu(), other) for images, other in zip(delivered, expected, strict=True))
        list(loader.run(plan))
    assert not loader._route._being_copied


@pytest.mark.gpu
def test_delivery_does_not_wait_for_the_device(files: ImageDataset) -> None:
    pytest.importorskip("triton")
    plan = EpochPlan(files, 0, View(32, 4))
    with RoiLoader([files], 2, BadSamples(), torch.device("cuda"), 2, "device") as loader:
        list(loader.run(plan))  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            list(loader.run(plan))
        finally:
            torch.cuda.set_sync_debug_mode("default")
