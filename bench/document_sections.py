"""The sections of docs/benchmarks.md: which script fills each, and with which arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Section:
    """A part of the page that a benchmark fills.

    Attributes:
        program: name of the script, a module of ``bench`` with ``parse`` and ``run``; ``run`` returns reports.
        arguments: for it, without what ``data`` adds.
        short: those of a run of a few seconds on the demo set, which shows that the section can be made.
        data: the option of bench/document.py whose folder the script gets as ``--data``; empty for none.
        charts: which of the reports' charts are shown, by their places.
        minutes: what it takes on two cores, about.
        keeps_runs: it makes whole training runs and takes ``--output``.
    """

    program: str
    arguments: str
    short: str
    data: Literal["data", "imagenette", ""] = "data"
    charts: tuple[int, ...] = (0,)
    minutes: int = 5
    keeps_runs: bool = False


_SMALL = "--limit-train 128 --limit-val 64 --batch-size 32 --threads 1 --num-workers 1 --model cifar_resnet10"
_ACCURACY = "--model resnet10t --epochs 6 --resolutions 64,80,96 --threads 1 --num-workers 1"

SECTIONS = {
    "loaders": Section(
        "throughput",
        "--loaders torch,dali,peer:dali,peer:dali-windows,peer:torchvision,peer:torchvision-v2 --num-workers 2 "
        "--resolutions 128,224 --seconds 3 --rounds 4",
        "--loaders torch,peer:torchvision --num-workers 1 --resolutions 32 --batch-size 32 --seconds 0.5 --rounds 1",
        charts=(0, 1),
        minutes=10,
    ),
    "workers": Section(
        "throughput",
        "--loaders torch,dali --num-workers 0,1,2 --resolutions 224 --output uint8 --seconds 3 --rounds 3",
        "--loaders torch --num-workers 0 --resolutions 32 --batch-size 32 --output uint8 --seconds 0.5 --rounds 1",
        charts=(),
        minutes=2,
    ),
    "num-workers": Section(
        "num_workers",
        "--loaders torch,dali,roi --num-workers 0,1,2,3 --resolutions 96 --train resnet10t --seconds 2 --rounds 5",
        "--loaders torch --num-workers 0,1 --resolutions 32 --batch-size 32 --train cifar_resnet10 --seconds 0.5 "
        "--rounds 1",
        charts=(0, 2),
        minutes=11,
    ),
    "regions": Section(
        "region_speed",
        "--output uint8 --seconds 3 --rounds 5",
        "--output uint8 --runs threads --seconds 0.5 --rounds 1",
        minutes=11,
    ),
    "regions-float32": Section(
        "region_speed",
        "--output float32 --runs 224,128 --seconds 3 --rounds 3",
        "--output float32 --runs threads --seconds 0.5 --rounds 1",
        charts=(),
        minutes=5,
    ),
    "region-profile": Section(
        "region_profile",
        "--repetitions 20",
        "--loaders roi:plain --resolutions 32 --images 64 --repetitions 1",
        minutes=2,
    ),
    "transform-order": Section(
        "transform_order",
        "--case default,blur-resize,geometry,jitter --orders 5",
        "--case blur-resize --orders 3 --images 2 --rounds 1",
        charts=(0, 1, 2),
        minutes=5,
    ),
    "planner": Section(
        "transform_order",
        "--check 200 --images 16 --rounds 3",
        "--check 3 --images 2 --rounds 1",
        minutes=10,
    ),
    "transform-training": Section(
        "transform_training",
        "--loaders torch,dali,ffcv,roi --num-workers 1 --threads 1 --model test_byobnet --resolutions 96 --epochs 8 "
        "--rounds 10",
        f"--loaders torch --resolutions 32 --epochs 1 --rounds 1 {_SMALL}",
        minutes=26,
        keeps_runs=True,
    ),
    "training-loop": Section(
        "training_loop",
        "--models resnet10t --resolutions 64,96 --seconds 8 --rounds 5",
        "--models cifar_resnet10 --resolutions 32 --batch-size 16 --seconds 0.5 --rounds 1",
        data="",
        charts=(),
        minutes=4,
    ),
    "data-stall": Section(
        "training",
        "--experiment stall --loaders torch,dali,ffcv,roi --num-workers 2 --model resnet10t --resolutions 96 "
        "--stall-epochs 10 --rounds 3",
        f"--experiment stall --loaders torch --resolutions 32 --stall-epochs 1 --rounds 1 {_SMALL}",
        minutes=8,
        keeps_runs=True,
    ),
    "tuner": Section(
        "tuner",
        "--loaders torch,dali,roi --seconds 5 --rounds 3 --options '--threads 1'",
        "--loaders torch --cores 1 --num-workers 1 --situations loading --limit-train 64 --seconds 1 "
        "--settling 1 --rounds 1",
        minutes=30,
        keeps_runs=True,
    ),
    "predictions": Section(
        "predictions",
        "--rounds 3",
        "--cases 'slow model' --rounds 1 --seconds 1 --doctor-seconds 2",
        data="",
        minutes=10,
    ),
    "schedules": Section(
        "training",
        "--data demo --experiment schedules --loaders torch --model resnet10t --schedules 64 48,64 32,48,64 --epochs 6 "
        "--seeds 0,1,2 --limit-train 1000 --limit-val 500 --num-workers 1",
        f"--data demo --experiment schedules --loaders torch --schedules 40 32,40 --epochs 2 --seeds 0 {_SMALL}",
        data="",
        charts=(0, 1),
        minutes=10,
        keeps_runs=True,
    ),
    "accuracy": Section(
        "accuracy",
        f"--loaders torch,roi --seeds 0,1,2 {_ACCURACY} --limit-train 4000",
        f"--loaders torch --seeds 0,1 --epochs 1 --resolutions 32 {_SMALL}",
        data="imagenette",
        minutes=25,
        keeps_runs=True,
    ),
    "memory": Section(
        "memory",
        "--loaders torch,dali --num-workers 2 --resolutions 96,128,160,224 --epochs 10",
        "--loaders torch --num-workers 1 --resolutions 32,48 --epochs 3 --images 64 --batch-size 32",
        minutes=2,
    ),
}
