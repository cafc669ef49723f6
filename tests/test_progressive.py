"""The progressive schedule: what each epoch trains with."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import Config, OptimizerConfig, ResolutionConfig
from engine.progressive import Evaluation, History, ProgressiveSchedule, Stage, StepRule
from engine.validation import validate


def make_schedule(epochs: int = 10, batch_size: int = 64, **options: Any) -> ProgressiveSchedule:
    config = Config(
        resolution=ResolutionConfig(**options), optimizer=OptimizerConfig(epochs=epochs, batch_size=batch_size)
    )
    validate(config)
    return ProgressiveSchedule.from_config(config)


def sizes(schedule: ProgressiveSchedule, epochs: int) -> list[int]:
    return [schedule.stage_at(epoch / epochs).resolution for epoch in range(epochs)]


def run(schedule: ProgressiveSchedule, metrics: list[float]) -> list[Stage]:
    """Train as many epochs as there are metrics, evaluating after each."""
    history, stages = History(), []
    for epoch, metric in enumerate(metrics):
        stages.append(schedule.stage_at(epoch / len(metrics), history))
        history = history.extended(epoch, stages[-1].index, metric)
    return stages


@st.composite
def schedules(draw: st.DrawFn) -> tuple[ProgressiveSchedule, int, int]:
    """A schedule with its epochs and its base batch size."""
    ladder = tuple(sorted(draw(st.sets(st.integers(8, 512), min_size=1, max_size=6))))
    count = len(ladder)
    kinds = ["auto", "fixed", "linear", "stages", *["metric"] * (count > 1)]
    kind = draw(st.sampled_from(kinds))
    epochs, batch_size = draw(st.integers(1, 40)), draw(st.integers(1, 300))
    options: dict[str, Any] = {"resolutions": ladder, "resolution_schedule": kind}
    given_starts = {"stages": "stage_starts", "auto": "stage_starts", "metric": "latest_starts"}
    if kind in given_starts and draw(st.booleans()):
        later = draw(st.sets(st.integers(1, 99), min_size=count - 1, max_size=count - 1))
        options[given_starts[kind]] = (0.0, *(percent / 100 for percent in sorted(later)))
    options["step_patience"], options["step_cooldown"] = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    options["lr_with_batch"] = draw(st.sampled_from(["none", "sqrt", "linear"]))
    options["regularization"] = draw(st.sampled_from(["fixed", "adaptive"]))
    batches = st.tuples(*[st.integers(1, 300)] * count)
    options["batch_sizes"] = draw(st.sampled_from(["fixed", "auto"]) | batches)
    return make_schedule(epochs, batch_size, **options), epochs, batch_size


@settings(max_examples=60, deadline=None)
@given(drawn=schedules(), data=st.data())
def test_any_schedule_rises_through_the_given_sizes_and_ends_at_the_largest(
    drawn: tuple[ProgressiveSchedule, int, int], data: st.DataObject
) -> None:
    schedule, epochs, _ = drawn
    metrics = data.draw(st.lists(st.floats(0, 100), min_size=epochs, max_size=epochs))
    stages = run(schedule, metrics)
    assert stages == run(schedule, metrics)
    assert set(stages) <= set(schedule.stages)
    assert all(before.index <= after.index for before, after in pairwise(stages))
    assert stages[-1] == schedule.stages[-1]
    assert all(stage.lr_scale > 0 and stage.batch_size > 0 and 0 < stage.regularization <= 1 for stage in stages)
    assert stages[-1].regularization == 1


@settings(max_examples=60, deadline=None)
@given(drawn=schedules(), data=st.data())
def test_a_metric_never_holds_a_stage_beyond_its_latest_start_nor_skips_the_rule(
    drawn: tuple[ProgressiveSchedule, int, int], data: st.DataObject
) -> None:
    schedule, epochs, _ = drawn
    stages = run(schedule, data.draw(st.lists(st.floats(0, 100), min_size=epochs, max_size=epochs)))
    latest = [schedule.stage_at(epoch / epochs) for epoch in range(epochs)]
    assert all(stage.index >= bound.index for stage, bound in zip(stages, latest, strict=True))
    rule = schedule.step_rule
    if rule is None:
        assert stages == latest
        return
    for epoch, (before, after) in enumerate(pairwise(stages), start=1):
        if after.index > max(before.index, latest[epoch].index):
            in_stage = sum(stage == before for stage in stages[:epoch])
            assert after.index == before.index + 1
            assert in_stage > rule.patience + (rule.cooldown if before.index else 0)


@settings(max_examples=60, deadline=None)
@given(drawn=schedules())
def test_automatic_batches_never_need_more_memory_than_the_largest_size(
    drawn: tuple[ProgressiveSchedule, int, int],
) -> None:
    _, epochs, batch_size = drawn
    ladder = tuple(stage.resolution for stage in drawn[0].stages)
    schedule = make_schedule(epochs, batch_size, resolutions=ladder, batch_sizes="auto")
    budget = batch_size * ladder[-1] ** 2
    assert schedule.stages[-1].batch_size == batch_size
    for stage in schedule.stages:
        assert stage.batch_size >= batch_size
        assert stage.batch_size * stage.resolution**2 <= budget


def test_fixed_trains_at_the_largest_size_throughout() -> None:
    schedule = make_schedule(resolutions=(64, 96), resolution_schedule="fixed", batch_sizes=(128, 48))
    assert schedule.stages == (Stage(0, 96, 48, (48 / 64) ** 0.5, 1.0),)
    assert sizes(schedule, 10) == [96] * 10


def test_stages_share_the_run_evenly() -> None:
    assert sizes(make_schedule(resolutions=(64, 96, 128), epochs=9), 9) == [64] * 3 + [96] * 3 + [128] * 3
    assert sizes(make_schedule(resolutions=(64, 96, 128), epochs=10), 10) == [64] * 4 + [96] * 3 + [128] * 3


def test_stages_start_where_they_are_told_to() -> None:
    schedule = make_schedule(resolutions=(64, 96, 128), stage_starts=(0.0, 0.3, 0.7), epochs=10)
    assert sizes(schedule, 10) == [64] * 3 + [96] * 4 + [128] * 3


def test_linear_takes_the_size_nearest_to_the_line() -> None:
    ladder = (64, 80, 128)
    schedule = make_schedule(resolutions=ladder, resolution_schedule="linear", epochs=17)
    line = [64 + (128 - 64) * epoch / 16 for epoch in range(17)]
    nearest = [min(ladder, key=lambda size: (abs(size - wanted), -size)) for wanted in line]
    assert sizes(schedule, 17) == nearest


@pytest.mark.parametrize("kind", ["stages", "linear", "metric"])
def test_short_runs_end_at_the_largest_size_too(kind: str) -> None:
    for epochs in (1, 2, 3):
        schedule = make_schedule(resolutions=(64, 96, 128, 160), resolution_schedule=kind, epochs=epochs)
        assert sizes(schedule, epochs)[-1] == 160


def test_metric_leaves_the_last_quarter_to_the_largest_size() -> None:
    schedule = make_schedule(resolutions=(64, 96, 128), resolution_schedule="metric", epochs=16)
    always_better = [stage.resolution for stage in run(schedule, [5.0 * epoch for epoch in range(16)])]
    assert always_better == [64] * 6 + [96] * 6 + [128] * 4


def test_metric_steps_up_when_the_gain_stops() -> None:
    schedule = make_schedule(
        resolutions=(64, 96), resolution_schedule="metric", epochs=20, step_patience=2, step_min_gain=0.5
    )
    metrics = [10.0, 20.0, 20.2, 20.4] + [50.0] * 16
    assert [stage.resolution for stage in run(schedule, metrics)] == [64] * 4 + [96] * 16


def test_a_dip_after_a_step_up_is_ignored() -> None:
    rule = StepRule(patience=1, min_gain=0.5, cooldown=2)
    rising_from_a_dip = (30.0, 5.0, 31.0, 33.0)
    assert not rule.stage_is_over(rising_from_a_dip[:2], stage=1)
    assert not rule.stage_is_over(rising_from_a_dip[:3], stage=1)
    assert not rule.stage_is_over(rising_from_a_dip, stage=1)
    assert rule.stage_is_over((*rising_from_a_dip, 33.2), stage=1)
    assert rule.stage_is_over(rising_from_a_dip[:2], stage=0), "the first stage follows no step"


@pytest.mark.parametrize(("follow", "scale"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_the_learning_rate_follows_the_batch(follow: str, scale: float) -> None:
    first, last = make_schedule(resolutions=(64, 128), batch_sizes="auto", lr_with_batch=follow).stages
    assert (first.batch_size, first.lr_scale) == (256, scale)
    assert (last.batch_size, last.lr_scale) == (64, 1.0)


def test_regularization_grows_with_the_size() -> None:
    options: dict[str, Any] = {"resolutions": (100, 150, 300), "regularization_start": 0.2}
    adaptive = make_schedule(**options, regularization="adaptive").stages
    assert [stage.regularization for stage in adaptive] == pytest.approx([0.2, 0.4, 1.0])
    assert [stage.regularization for stage in make_schedule(**options).stages] == [1.0] * 3
    assert make_schedule(resolutions=(96,), regularization="adaptive").stages[0].regularization == 1.0


def test_the_history_survives_a_checkpoint() -> None:
    history = History().extended(0, 0, 12.5).extended(1, 1, 50.0)
    restored = History.from_list(json.loads(json.dumps(history.to_list())))
    assert restored == history
    assert restored.evaluations[1] == Evaluation(1, 1, 50.0)


@pytest.mark.parametrize("progress", [-0.1, 1.0, float("nan")])
def test_progress_outside_the_run_is_refused(progress: float) -> None:
    with pytest.raises(ValueError, match="progress"):
        make_schedule(resolutions=(64,)).stage_at(progress)


def test_a_schedule_needs_resolutions_and_sound_starts() -> None:
    with pytest.raises(ValueError, match="resolutions"):
        ProgressiveSchedule.from_config(Config())
    stages = Stage(0, 64, 8), Stage(1, 96, 8)
    for starts in ((0.0,), (0.1, 0.2), (0.0, 0.5, 0.6)):
        with pytest.raises(ValueError, match="one start for each stage"):
            ProgressiveSchedule(stages, starts)
    with pytest.raises(ValueError, match="must not fall"):
        ProgressiveSchedule((*stages, Stage(2, 128, 8)), (0.0, 0.6, 0.5))


def test_the_schedule_does_without_torch() -> None:
    code = "import sys, engine.progressive, engine.plan_table, engine.command; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
