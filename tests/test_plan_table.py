"""The table that --plan shows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import Config, OptimizerConfig, ResolutionConfig
from engine.plan_table import plan_rows, plan_text, saving
from engine.progressive import ProgressiveSchedule


def make_schedule(epochs: int, **options: Any) -> ProgressiveSchedule:
    return ProgressiveSchedule.from_config(
        Config(resolution=ResolutionConfig(**options), optimizer=OptimizerConfig(epochs=epochs, batch_size=10))
    )


def seconds_per_batch(resolution: int, batch_size: int) -> float:
    return resolution**2 * batch_size * 1e-4


def memory(resolution: int, batch_size: int) -> float:
    return resolution**2 * batch_size * 2.0**20


def test_rows_say_what_each_stage_does_and_costs() -> None:
    schedule = make_schedule(8, resolutions=(50, 100), batch_sizes="auto")
    first, last = plan_rows(schedule, 8, 105, seconds_per_batch=seconds_per_batch, memory=memory)
    assert (first.stage.resolution, first.first_epoch, first.num_epochs, first.batches) == (50, 0, 4, 3)
    assert (last.stage.resolution, last.first_epoch, last.num_epochs, last.batches) == (100, 4, 4, 11)
    assert (first.flops, last.flops) == (0.25, 1.0)
    assert last.seconds == pytest.approx(4 * 11 * 10.0)
    assert last.memory == 100**2 * 10 * 2.0**20


def test_a_last_batch_that_is_dropped_is_not_counted() -> None:
    schedule = make_schedule(2, resolutions=(50,))
    assert plan_rows(schedule, 2, 105)[0].batches == 11
    assert plan_rows(schedule, 2, 105, drop_last=True)[0].batches == 10


@settings(max_examples=60, deadline=None)
@given(
    ladder=st.sets(st.integers(8, 512), min_size=2, max_size=6),
    kind=st.sampled_from(["fixed", "linear", "stages", "metric"]),
    epochs=st.integers(1, 30),
)
def test_rows_cover_every_epoch_once(ladder: set[int], kind: str, epochs: int) -> None:
    schedule = make_schedule(epochs, resolutions=tuple(sorted(ladder)), resolution_schedule=kind)
    rows = plan_rows(schedule, epochs, 100, seconds_per_batch=seconds_per_batch)
    covered = [epoch for row in rows for epoch in range(row.first_epoch, row.first_epoch + row.num_epochs)]
    assert covered == list(range(epochs))
    saved = saving(rows)
    assert 0 <= saved.flops < 1
    assert saved.seconds is not None and saved.seconds_at_largest is not None
    assert saved.seconds <= saved.seconds_at_largest * (1 + 1e-9)


def test_the_saving_is_against_the_largest_size_throughout() -> None:
    schedule = make_schedule(4, resolutions=(50, 100))
    saved = saving(plan_rows(schedule, 4, 100, seconds_per_batch=seconds_per_batch))
    assert saved.flops == pytest.approx(1 - (2 * 0.25 + 2) / 4)
    assert saved.seconds_at_largest == pytest.approx(4 * 10 * 10.0)
    assert saved.seconds == pytest.approx(2 * 10 * 2.5 + 2 * 10 * 10.0)
    assert saving(plan_rows(schedule, 4, 100)).seconds is None


def test_text_shows_the_stages_and_the_saving() -> None:
    schedule = make_schedule(8, resolutions=(50, 100), regularization="adaptive")
    text = plan_text(plan_rows(schedule, 8, 100, seconds_per_batch=seconds_per_batch, memory=memory))
    lines = text.splitlines()
    assert all(len(line) < 100 and line == line.rstrip() for line in lines)
    assert " ".join(lines[3].split()) == "1 50 px 1 to 4 10 10 1.00 30% 25% 1 min 40 s 24.41 GiB"
    assert "38% less than at 100 px throughout" in text
    assert "predicted to take 8 min 20 s, against 13 min 20 s" in text


def test_text_leaves_out_what_was_not_measured() -> None:
    text = plan_text(plan_rows(make_schedule(2, resolutions=(50,)), 2, 100))
    assert "time" not in text and "memory" not in text
    assert "less than" not in text, "one size saves nothing"


def test_text_of_a_metric_schedule_gives_bounds() -> None:
    schedule = make_schedule(8, resolutions=(50, 100), resolution_schedule="metric")
    text = plan_text(plan_rows(schedule, 8, 100, seconds_per_batch=seconds_per_batch), at_latest=True)
    assert "latest" in text and "up to 56% less" in text and "at least" in text
