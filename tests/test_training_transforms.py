"""Training with a transform list of one's own: its order does not matter, runs resume exactly, and errors name it."""

from __future__ import annotations

import pickle
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import transforms as v1
from torchvision.transforms import v2

from engine import train, transforms
from engine.checkpoint import CheckpointError, load_checkpoint
from engine.command import load_config
from engine.config import AugmentConfig, ConfigError
from engine.distributed import Process
from engine.rundir import read_records
from engine.saved_model import read_metadata
from engine.setup import Normalization
from engine.transform_costs import transform_costs
from engine.transforms import TransformList, arrange, normalization_for, read_transforms
from kernels.jpeg import JpegLibraryError, load_library
from loaders.dataset import ImageData
from loaders.transforms import planner
from loaders.transforms.geometry import HorizontalFlip, RandomResizedCrop, Rotation, VerticalFlip
from loaders.transforms.legality import Swap
from loaders.transforms.program import Program
from loaders.transforms.values import Normalize, ToFloat
from tests.folders import image_folder, opened
from tests.transform_costs import PixelCosts

SMALL = ["--model", "cifar_resnet10", "--batch-size", "8", "--num-workers", "1", "--threads", "1", "--epochs", "2"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
HEADER = "import torch\nfrom torchvision import transforms as v1\nfrom torchvision.transforms import v2\n"
BADLY = "[v1.ToTensor(), v1.Normalize(MEAN, STD), v1.RandomHorizontalFlip(), v1.RandomResizedCrop(32)]"
WELL = (
    "v2.Compose([v2.ToImage(), v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), "
    "v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])"
)
MOVED = "HorizontalFlip moved after RandomResizedCrop; ToFloat and Normalize moved after HorizontalFlip"


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "machine_costs", PixelCosts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "colors", train=30, val=6)


def written(path: Path, transforms: str, header: str = HEADER) -> Path:
    path.write_text(f"{header}MEAN, STD = {MEAN}, {STD}\ntransforms = {transforms}\n")
    return path


def run_directory(output: Path) -> Path:
    (path,) = (path for path in output.iterdir() if path.is_dir())
    return path


def trained(folder: Path, output: Path, *options: str) -> Path:
    assert train.main([str(folder), *SMALL, "--output", str(output), *options]) == 0
    return run_directory(output)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "last.pt")[1]["model"]


def assert_equal_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("loader", ["torch", "dali", "roi", "ffcv"])
def test_a_badly_ordered_list_trains_to_the_same_weights(folder: Path, tmp_path: Path, loader: str) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    if loader == "ffcv":
        pytest.importorskip("ffcv", reason="FFCV is not installed")
    if loader in ("roi", "ffcv"):
        try:
            load_library()
        except JpegLibraryError as error:
            pytest.skip(str(error))
    runs = []
    for name, listed in (("well", WELL), ("badly", BADLY)):
        file = written(tmp_path / f"{name}.py", listed)
        options = ["--loader", loader, "--transforms", str(file), "--epochs", "1", "--limit-train", "16"]
        runs.append(trained(folder, tmp_path / name, *options, *["--pack", "off"] * (loader == "roi")))
    assert_equal_weights(*runs)


def test_a_run_says_what_was_moved_and_keeps_it(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "mine.py", BADLY)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO", "headrace"):
        run = trained(folder, tmp_path / "runs", "--transforms", "mine.py", "--mixup", "0.2")
    assert MOVED in caplog.text
    assert "Normalization: mean 0.5, 0.4, 0.3, std 0.2, 0.25, 0.3, by the transforms" in caplog.text
    assert MOVED in (run / "transforms.txt").read_text()
    assert MOVED in (run / "report.html").read_text()
    assert (run / "transforms.py").read_text() == file.read_text()
    config = load_config(["--config", str(run / "config.toml")])
    assert config.augment.transforms == file
    assert config.augment.mixup == 0.2
    assert config.resolution.resolutions == (32,)
    assert config.resolution.val_resolution == 32
    saved = read_metadata(run / "model.safetensors")
    assert (saved.mean, saved.std, saved.resolution) == (MEAN, STD, 32)


def test_a_schedule_of_sizes_takes_the_crop_with_it(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(tmp_path / "mine.py", "v2.RandomResizedCrop(32)")
    with caplog.at_level("INFO", "headrace"):
        run = trained(
            folder, tmp_path / "runs", "--transforms", str(file), "--resolutions", "16,24", "--loader", "torch",
            "--regularization", "adaptive",
        )  # fmt: skip
    assert [r["resolution"] for r in read_records(run / "metrics.jsonl") if r["kind"] == "epoch"] == [16, 24]
    assert "they make 32 px; with --resolutions their crop is made at 16, 24 px instead" in caplog.text
    assert "--regularization adaptive scales dropout, mixup and CutMix, not these transforms" in caplog.text
    assert "by the model, as the transforms have none" in caplog.text


def test_a_list_that_only_converts_is_not_normalized(folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "mine.py", "[v2.RandomResizedCrop(32), v1.ToTensor()]")
    saved = read_metadata(trained(folder, tmp_path / "runs", "--transforms", str(file)) / "model.safetensors")
    assert (saved.mean, saved.std) == ((0, 0, 0), (1, 1, 1))


# Handed over from Python


@pytest.mark.parametrize(
    "given",
    [
        v2.Compose([v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), v2.ToImage()]),
        [v2.RandomResizedCrop(32), v2.RandomHorizontalFlip()],
        Program((RandomResizedCrop((32, 32), (0.08, 1.0)), HorizontalFlip())),
    ],
)
def test_a_list_is_read_in_any_form(given: Any, tmp_path: Path) -> None:
    handed = read_transforms(AugmentConfig(), given)
    read = read_transforms(
        AugmentConfig(transforms=written(tmp_path / "a.py", "[v1.RandomResizedCrop(32), v1.RandomHorizontalFlip()]"))
    )
    assert handed is not None
    assert read is not None
    assert handed.program == read.program
    assert handed.fingerprint == read.fingerprint


def test_functions_count_by_their_name() -> None:
    """For a resume: nothing else of them is the same in two processes."""

    def listed(function: Any) -> str:
        read = read_transforms(AugmentConfig(), [v2.RandomResizedCrop(32), function])
        assert read is not None
        return read.fingerprint

    assert listed(lambda image: image) == listed(lambda image: image + 0)
    assert listed(lambda image: image) != listed(torch.clone)


def test_pretrained_weights_that_expect_another_normalization_are_warned_of(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = arranged([v2.RandomResizedCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, True)], opened(folder, tmp_path))
    of_model = Normalization(MEAN, STD)
    assert normalization_for(own, of_model, pretrained=False) == Normalization((0, 0, 0), (1, 1, 1))
    assert "were trained with" not in caplog.text
    normalization_for(own, of_model, pretrained=True)
    assert "were trained with mean 0.5, 0.4, 0.3, std 0.2, 0.25, 0.3" in caplog.text
    assert normalization_for(None, of_model, pretrained=True) == of_model


def test_a_list_handed_over_trains_as_its_file_does(folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "mine.py", BADLY)
    options = [str(folder), *SMALL, "--loader", "torch"]
    from_file = trained(folder, tmp_path / "file", "--loader", "torch", "--transforms", str(file))
    compose = v2.Compose(
        [v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, True), v2.Normalize(MEAN, STD)]
    )
    stopped = load_config([*options, "--output", str(tmp_path / "python"), "--time-limit", "0.001s"])
    ending = train.train(stopped, compose)
    assert ending is not None
    assert not ending.finished
    run = run_directory(tmp_path / "python")
    with pytest.raises(SystemExit):
        train.main(["--resume", str(run)])
    on = load_config([*options, "--output", str(tmp_path / "python"), "--resume", str(run)])
    with pytest.raises(CheckpointError, match=r"hand the same ones to engine\.train\.train again"):
        train.train(on)
    with pytest.raises(CheckpointError, match="begun with another transform list than the transforms handed over"):
        train.train(on, [v2.RandomResizedCrop(32)])
    assert train.train(on, compose) is not None
    assert "transforms that were handed over" in (run / "config.toml").read_text()
    assert load_config(["--config", str(run / "config.toml")]).resolution.resolutions == (32,)
    assert_equal_weights(from_file, run)


# Resuming


def test_a_list_is_resumed_exactly_in_the_order_it_began_with(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = "[v2.RandomResizedCrop(32), v2.RandomRotation(20), v2.ColorJitter(0.3, 0.3), v2.RandomHorizontalFlip()]"
    file = written(tmp_path / "mine.py", listed)
    options = ["--transforms", str(file), "--loader", "torch", "--reorder", "approx"]
    whole = trained(folder, tmp_path / "whole", *options)
    cut = trained(folder, tmp_path / "cut", *options, "--time-limit", "0.001s")
    begun_with = load_checkpoint(cut / "last.pt")[1]["identity"]["transforms"]

    def refuse(*arguments: Any) -> None:
        raise AssertionError("the order is the one that the run began with")

    monkeypatch.setattr(planner, "cheapest", refuse)
    for resolved in ("[v2.RandomResizedCrop(32)]", listed.replace("20", "21")):
        written(file, resolved)
        with pytest.raises(SystemExit):
            train.main(["--resume", str(cut), "--time-limit", "1h"])
        error = " ".join(capsys.readouterr().err.split())
        assert f"another transform list than --transforms {file}: its own is kept in {cut / 'transforms.py'}" in error
    copy = cut / "transforms.py"
    assert train.main(["--resume", str(cut), "--time-limit", "1h", "--transforms", str(copy)]) == 0
    assert_equal_weights(whole, cut)
    assert load_checkpoint(cut / "last.pt")[1]["identity"]["transforms"] == begun_with


def test_a_run_without_a_list_does_not_go_on_with_one(folder: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--resolutions", "32", "--loader", "torch", "--time-limit", "0.001s"]
    run = trained(folder, tmp_path / "runs", *options)
    file = written(tmp_path / "mine.py", BADLY)
    with pytest.raises(SystemExit):
        train.main(["--resume", str(run), "--transforms", str(file)])
    assert f"begun without a transform list: leave --transforms {file} out" in capsys.readouterr().err


def test_all_ranks_take_the_order_of_the_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows from what the first one measures, and is sent without the user's functions, which may not be."""
    data = opened(folder, tmp_path)
    operations = [v2.ToImage(), v2.RandomHorizontalFlip(), v2.RandomResizedCrop(32), lambda image: image]
    sent: list[Any] = []

    class Rank(Process):
        def broadcast(self, value: Any) -> Any:
            if self.is_main:
                sent.append(pickle.dumps(value))
            return pickle.loads(sent[-1])

    first = arranged(operations, data, process=Rank(0, 2, 0, 2, torch.device("cpu")))
    other = arranged(operations, data, process=Rank(1, 2, 1, 2, torch.device("cpu")))
    assert first.plan.orders == other.plan.orders == ((1, 0), (0,))
    assert first.plan == other.plan
    assert first.split == other.split
    with pytest.raises(ConfigError, match="handed over: there are no costs"):
        monkeypatch.setattr(transforms, "plan", no_costs)
        arranged(operations, data, process=Rank(0, 2, 0, 2, torch.device("cpu")))
    with pytest.raises(ConfigError, match="handed over: there are no costs"):
        arranged(operations, data, process=Rank(1, 2, 1, 2, torch.device("cpu")))


def no_costs(*arguments: Any) -> None:
    raise ValueError("there are no costs")


def test_measuring_that_takes_long_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(transforms, "_PATIENCE", 0.001)
    with caplog.at_level("INFO", "headrace"), transforms._said_if_it_takes_long():
        while "measuring what they cost" not in caplog.text:
            time.sleep(0.001)


# Errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("transforms = [\n", "line 1: '[' was never closed"),
        ("import torch\n\ntransforms = torch.nothing\n", "line 3: AttributeError"),
        ("raise SystemExit(1)\n", "line 1: SystemExit: 1"),
        ("pipeline = []\n", "it does not define transforms; assign your Compose to that name"),
        ("from torchvision import transforms\n", "transforms is a module there; assign your Compose to that name"),
        ("transforms = 3\n", "is no transform"),
        (
            f"{HEADER}transforms = [v1.Normalize([0.5] * 3, [0.2] * 3)]\n",
            "put ToFloat (ToTensor, or ToDtype(torch.float32, scale=True)) before it",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit) as ending:
        train.main(["demo", "--transforms", str(file)])
    assert ending.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: --transforms {file}")
    assert message in error


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        ([v2.RandomHorizontalFlip()], "nothing makes images of one size"),
        ([lambda image: image, v2.RandomResizedCrop(32)], "nothing is known of what it does"),
        ([v2.RandomResizedCrop((32, 48))], "loaders make squares"),
        ([v2.RandomResizedCrop(4)], "4 pixels are too small; at least 8"),
    ],
)
def test_a_list_that_cannot_be_split_is_refused(operations: list, message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        arranged(operations, opened(folder, tmp_path))
    assert str(caught.value).startswith("the transforms handed over: ")


ALONE = Process(0, 1, 0, 1, torch.device("cpu"))


def arranged(operations: Any, data: ImageData, process: Process = ALONE, **options: Any) -> transforms.Arrangement:
    config = load_config([])
    config = replace(config, augment=replace(config.augment, **options))
    listed = read_transforms(config.augment, operations)
    assert listed is not None
    return arrange(listed, config, data.train, process)


def test_an_order_is_kept_as_written_on_demand(folder: Path, tmp_path: Path) -> None:
    data = opened(folder, tmp_path)
    written_well = Program((RandomResizedCrop((32, 32), (0.08, 1.0)), ToFloat(), Normalize(MEAN, STD)))
    assert arranged(written_well, data, reorder="off").plan.numbers == (0, 1, 2)
    with pytest.raises(ConfigError, match=r"ToFloat stands before .*; or allow it by --reorder exact"):
        arranged(Program((ToFloat(), RandomResizedCrop((32, 32), (0.08, 1.0)))), data, reorder="off")
    jittered = [v2.ColorJitter(0.2), v2.RandomResizedCrop(32)]
    with pytest.raises(ConfigError, match=r"Brightness stands before .*; or allow it by --reorder approx"):
        arranged(jittered, data)
    assert arranged(jittered, data, reorder="approx").plan.numbers == (1, 0)


def test_what_is_said_is_what_is_done(folder: Path, tmp_path: Path) -> None:
    """The loader crops and flips first, whatever the plan's order is."""
    data = opened(folder, tmp_path)
    enlarged = arranged([v2.ColorJitter(0.5), v2.Resize((224, 224)), v1.ToTensor()], data, reorder="approx")
    assert enlarged.plan.swap < Swap.APPROX
    assert "after:  Resize -> Brightness -> ToFloat" in enlarged.text()
    assert "pixels differ at edges" in enlarged.text()
    policy = v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR)
    flipped = arranged([v2.RandomResizedCrop(32), policy, v2.RandomHorizontalFlip(), v1.ToTensor()], data)
    assert flipped.plan.numbers == (0, 1, 2, 3)
    assert "RandAugment moved after HorizontalFlip" in flipped.text()
    one_sided = Program((RandomResizedCrop((32, 32)), HorizontalFlip(), Rotation((5, 30)), VerticalFlip()))
    listed = TransformList(one_sided, "")
    kept = arrange(listed, load_config([]), data.train, ALONE, {"orders": [[0, 1, 3, 2]]})
    assert kept.plan.numbers == (0, 1, 3, 2)  # which the device does not keep to
    assert kept.done().numbers == (0, 1, 2, 3)
    assert "nothing moved" in kept.text()
    assert "rounding" not in kept.text()


def test_a_run_says_how_much_approximate_moves_have_changed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(tmp_path / "mine.py", "[v2.ColorJitter(0.9), v2.RandomResizedCrop(32)]")
    options = ["--transforms", str(file), "--reorder", "approx", "--epochs", "1", "--limit-train", "16"]
    with caplog.at_level("INFO", "headrace"):
        run = trained(folder, tmp_path / "runs", *options)
    assert re.search(r"measured on \d images?: mean \d+\.\d, largest \d+ of 255", caplog.text)
    assert "of 255" in (run / "transforms.txt").read_text()


def test_differences_are_measured(folder: Path, tmp_path: Path) -> None:
    data = opened(folder, tmp_path)
    listed = [v2.ColorJitter(0.9), v2.RandomResizedCrop(32), v2.Lambda(noisy)]
    approximate = arranged(listed, data, reorder="approx")
    state = torch.get_rng_state()
    measured = transform_costs(approximate.done(), data.train)
    assert torch.equal(torch.get_rng_state(), state)
    assert measured is not None
    assert measured.images > 0
    assert measured.mean is not None
    assert measured.largest is not None
    assert 0 <= measured.mean <= measured.largest < 255
    assert f"measured on {measured.images} image" in approximate.text(measured)
    same = transform_costs(arranged([v2.RandomResizedCrop(32), v2.Lambda(noisy)], data).done(), data.train)
    assert same is not None
    assert same.largest == 0  # the function draws alike


def noisy(image: torch.Tensor) -> torch.Tensor:
    return image // 2 + torch.randint_like(image, 0, 20)


def test_a_function_that_fails_is_named_before_training(folder: Path, tmp_path: Path, capsys: Any) -> None:
    file = written(tmp_path / "mine.py", "[v2.RandomResizedCrop(32), lambda image: image.convert('L')]")
    with pytest.raises(SystemExit):
        train.main([str(folder), *SMALL, "--transforms", str(file), "--output", str(tmp_path / "runs"), "--plan"])
    error = capsys.readouterr().err
    assert "is given a tensor, uint8 (3, 32, 32) on cpu, and failed: AttributeError" in error
    assert "Traceback" not in error


def test_other_options_beside_a_list_are_refused(tmp_path: Path) -> None:
    for options in ("--hflip 0", "--augment strong", "--scale 0.5,1"):
        with pytest.raises(ConfigError, match=f"{options.split()[0]} and --transforms both say"):
            load_config(["--transforms", "a.py", *options.split()])
    load_config(["--transforms", "a.py", "--mixup", "0.2", "--cutmix", "1"])
    with pytest.raises(ConfigError, match="--erasing says how images vary"):
        read_transforms(AugmentConfig(erasing=0.1), [v2.RandomResizedCrop(32)])
    with pytest.raises(ConfigError, match="choose one"):
        read_transforms(AugmentConfig(transforms=tmp_path), [v2.RandomResizedCrop(32)])


def test_a_plan_shows_what_a_list_costs_here(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = written(tmp_path / "mine.py", BADLY)
    options = [str(folder), *SMALL, "--transforms", str(file), "--loader", "torch", "--output", str(tmp_path / "runs")]
    assert train.main([*options, "--plan"]) == 0
    shown = capsys.readouterr().out
    assert MOVED in shown
    assert "measured" in shown
    assert not (tmp_path / "runs").exists()
