"""Cases in which one thing must be the limit: what makes them so, and how they are predicted and trained."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bench.training_runs import Outcome, Run, RunError, Runner
from engine.roofline import Limit
from loaders.dataset import ImageDataset
from loaders.pixels import decode

_EPOCHS = 2  # the first does not count
_BATCH = 32
_PHOTOS, _COPIES, _SIDE = 128, 20, 1000
_NOISE = 12.0  # levels
_VALIDATION = 32  # images
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Case:
    """Something to predict and to train.

    Attributes:
        name: what to call it.
        limit: what it is made to be limited by.
        model, resolution: of the training.
        augment: options of the augmentation.
        num_workers: of the loader; None for what the doctor recommends.
        disk: images per second that can be read; None for the machine's own disk.
        photos: large ones in place of the set's.
    """

    name: str
    limit: Limit
    model: str
    resolution: int
    augment: tuple[str, ...] = ()
    num_workers: int | None = None
    disk: float | None = None
    photos: bool = False


_HEAVY = ("--augment", "strong", "--rand-augment", "12,9", "--color-jitter", "0.4", "--rotation", "30", "--blur", "1")

CASES = (
    Case("slow disk", "disk", "test_vit", 32, num_workers=2, disk=100.0),
    Case("heavy augmentation", "augmentation", "test_vit", 64, augment=_HEAVY),
    Case("slow model", "model", "resnet18", 96),
    Case("too few workers", "workers", "test_vit", 32, num_workers=1, photos=True),
)


@dataclass(frozen=True)
class Predicted:
    """What the doctor says of a case.

    Attributes:
        rate: images per second.
        limit: what sets it.
        num_workers: how many to take.
        cpu_seconds: processor time of an image.
    """

    rate: float
    limit: str
    num_workers: int
    cpu_seconds: float


def make_photos(
    dataset: ImageDataset, folder: Path, count: int = _PHOTOS, copies: int = _COPIES, side: int = _SIDE
) -> None:
    """Write photos that take long to decode, in class folders: a set's images, enlarged, with noise of a camera.

    Args:
        dataset: what to enlarge.
        folder: where to write.
        count: of photos.
        copies: names that each gets, so that an epoch is long.
        side: pixels.
    """
    random = np.random.default_rng(0)
    for number in range(count):
        index = number * len(dataset) // count
        with decode(dataset.paths[index]) as image:
            pixels = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        noisy = (pixels + random.normal(0.0, _NOISE, pixels.shape)).clip(0, 255).astype(np.uint8)
        place = folder / dataset.classes[int(dataset.labels[index])]
        place.mkdir(parents=True, exist_ok=True)
        first = place / f"{number:04}-0.jpg"
        Image.fromarray(noisy).save(first, quality=90)
        for copy in range(1, copies):
            (place / f"{number:04}-{copy}.jpg").hardlink_to(first)


@dataclass(frozen=True)
class Bench:
    """Predicts and trains cases.

    Attributes:
        root: an empty folder for runs, photos and what else is written.
        data: what to train on.
        mean_bytes: of an image of ``data``.
        threads: of PyTorch; 0 for one for each core.
        seconds: that an epoch is to take.
        doctor_seconds: that the doctor is given.
        machine: what this is measured on.
    """

    root: Path
    data: str
    mean_bytes: float
    threads: int
    seconds: float
    doctor_seconds: float
    machine: str

    def predict(self, case: Case) -> Predicted:
        """Ask the doctor.

        Raises:
            RunError: it failed.
        """
        written = self.root / "doctor.json"
        workers = "auto" if case.num_workers is None else str(case.num_workers)
        command = [
            sys.executable, "-m", *self._launcher(case, "engine.doctor"), *self._options(case), "--no-pixels",
            "--num-workers", workers, "--seconds", f"{self.doctor_seconds:g}", "--json", str(written),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=_ROOT)
        if done.returncode:
            raise RunError(f"the doctor failed on {case.name}:\n{done.stderr}")
        (found,) = json.loads(written.read_text())["predictions"]
        # A slow disk stays slow: no page cache is behind it.
        suffix = "" if case.disk is None else "_from_disk"
        demand = found["demand"]
        spent = sum(demand["cpu_seconds"].values()) + demand["step_cpu_seconds"] + demand["augment_cpu_seconds"]
        return Predicted(found[f"images_per_second{suffix}"], found[f"limit{suffix}"], found["num_workers"], spent)

    def train(self, case: Case, predicted: Predicted, number: int) -> Outcome:
        """Train for so many images that an epoch takes about the time that is wanted, if the prediction is right.

        Raises:
            RunError: it failed.
        """
        images = max(2 * _BATCH, round(predicted.rate * self.seconds))
        options = (
            *self._options(case), "--num-workers", str(predicted.num_workers), "--epochs", str(_EPOCHS),
            "--limit-train", str(images), "--limit-val", str(_VALIDATION),
        )  # fmt: skip
        run = Run(f"{case.name}, round {number + 1}", options, _EPOCHS)
        runner = Runner(self.root / "runs", self.machine, self._launcher(case, "engine.train"))
        return runner.make(case.name, [[run]], lambda outcomes: None)[run]

    def _options(self, case: Case) -> tuple[str, ...]:
        return (
            str(self.root / "photos") if case.photos else self.data,
            "--model", case.model, "--resolutions", str(case.resolution), *case.augment,
            "--loader", "torch", "--device", "cpu", "--threads", str(self.threads),
            "--batch-size", str(_BATCH),
        )  # fmt: skip

    def _launcher(self, case: Case, module: str) -> tuple[str, ...]:
        if case.disk is None:
            return (module,)
        rate, queue = case.disk * self.mean_bytes, self.root / "queue"
        return ("bench.slow_disk", "--bytes-per-second", f"{rate:g}", "--queue", str(queue), module)
