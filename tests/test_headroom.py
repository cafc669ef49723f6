from __future__ import annotations

from typing import Any

import pytest

from engine.headroom import headroom

# 400 images/s over 10 s, of which 2 went by waiting: 4,000 images, each 2 ms of computing.
EPOCH = {
    "resolution": 64, "images_per_second": 400.0, "seconds": 12.0, "train_seconds": 10.0, "data_wait_seconds": 2.0,
    "loading_cpu_ms_per_image": 4.0, "cpu_ms_per_image": 5.0, "num_workers": 2, "cores": 8.0, "world_size": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        # A worker of 4 ms: 250 images/s; training 1 / 2 ms = 500; 8 cores at 5 ms an image: 1,600.
        (
            {"num_workers": 1},
            "Limit at 64 px: the number of workers, at 250 images/s; headroom: training by itself 2.0x, "
            "the processor 6.4x",
        ),
        (
            {"num_workers": 6},
            "Limit at 64 px: the model, at 500 images/s; headroom: the number of workers 3.0x, the processor 3.2x",
        ),
        (
            {"num_workers": 6, "augment_seconds": 5.0},
            "Limit at 64 px: augmentation, at 500 images/s; headroom: the number of workers 3.0x, the processor 3.2x",
        ),
        (
            {"cores": 1.0},
            "Limit at 64 px: the processor, at 200 images/s; headroom: training by itself 2.5x, "
            "the number of workers 2.5x",
        ),
        # Each of four processes has trained on a quarter of the images.
        ({"num_workers": 6, "world_size": 4}, "Limit at 64 px: the model, at 125 images/s"),
        # In 5 s of search 200 images were trained on with one worker, 4 s waiting: 3,800 in 5 s without a wait remain.
        (
            {"num_workers": 6, "data_wait_seconds": 4.0, "search_seconds": 5.0, "search_wait_seconds": 4.0,
             "search_samples": 200},
            "Limit at 64 px: the model, at 760 images/s",
        ),
    ],
)  # fmt: skip
def test_the_limit_of_a_size_and_what_is_faster(changes: dict[str, Any], line: str) -> None:
    found = headroom(EPOCH | changes)
    assert found is not None
    assert found.startswith(line)


@pytest.mark.parametrize(
    "changes",
    [
        {"train_seconds": 1.9, "data_wait_seconds": 0.1},
        {"search_seconds": 9.0, "search_wait_seconds": 2.0, "search_samples": 3000},
        {"loading_cpu_ms_per_image": None},
        {"images_per_second": 0.0},
    ],
)
def test_an_epoch_that_shows_too_little_gives_no_line(changes: dict[str, Any]) -> None:
    assert headroom(EPOCH | changes) is None
