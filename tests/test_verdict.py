from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.time_spent import epoch_records, time_spent
from engine.verdict import Verdict, verdict


def epoch(number: int, resolution: int = 128, stage: int = 0, **changes: Any) -> dict[str, Any]:
    record = {
        "kind": "epoch", "epoch": number, "stage": stage, "resolution": resolution, "images_per_second": 500.0,
        "seconds": 12.0, "train_seconds": 10.0, "val_seconds": 1.5, "data_wait_seconds": 0.3, "switch_seconds": 0.2,
        "cpu_ms_per_image": 1.9,
    }  # fmt: skip
    return record | changes


def judged(records: list[dict[str, Any]], device: str = "cpu", loader: str = "torch", **changes: Any) -> Verdict:
    setting = {"num_workers": 2, "cores": 2.0, "world_size": 1, "tuned": False} | changes
    return verdict([setting | record for record in records], device=device, loader=loader)


def judge(records: list[dict[str, Any]], **changes: Any) -> str:
    return judged(records, **changes).sentence


def test_time_adds_up_to_the_run() -> None:
    spent = time_spent([epoch(0), epoch(1, augment_seconds=2.0)])
    assert spent.total == pytest.approx(24.0)
    assert spent.training == pytest.approx(20.0)
    assert spent.compute == pytest.approx(17.4)
    assert spent.augmentation == pytest.approx(2.0)
    assert spent.other == pytest.approx(0.6)


def test_a_model_that_never_waits_is_the_limit() -> None:
    text = judge([epoch(0), epoch(1)])
    assert text.startswith("The model is the limit: 97 % of the training time was spent computing (3 % waiting")
    assert "more workers would not" in text
    assert "a GPU" in text


def test_almost_nothing_is_not_nothing() -> None:
    assert "over 99 % of the training time was spent computing (under 1 % waiting" in judge(
        [epoch(0, data_wait_seconds=0.02)]
    )
    assert judge([epoch(0, data_wait_seconds=9.98)]).startswith("Over 99 % of the training time waited for data")


def test_gpu_utilization_is_evidence_where_it_is_known() -> None:
    text = judge([epoch(0, gpu_utilization=97.0), epoch(1, gpu_utilization=99.0)], device="cuda:0")
    assert "with the GPU busy 98 % of the time" in text
    assert "--amp" in text


def test_the_stage_that_waits_is_named() -> None:
    slow = [epoch(n, 128, 0, data_wait_seconds=4.1) for n in range(2)]
    text = judge([*slow, epoch(2, 192, 1)], num_workers=1)
    assert text.startswith("41 % of the training time waited for data in the 128 px stage: ")
    assert "loading and training share 2 cores, 1.9 ms of processor time for each image" in text
    assert text.endswith("more workers would help up to 2 cores (--num-workers 2, now 1).")


# What training waits for, in 10 s of it. Two cores and the rate of 500 images/s are those of ``epoch``.
SLOW_DISK = {
    "data_wait_seconds": 8.0, "images_per_second": 100.0, "bytes_per_image": 50_000.0, "cpu_ms_per_image": 5.0,
    "loading_cpu_ms_per_image": 3.0, "idle_cores": 1.5,
}  # fmt: skip
FEW_WORKERS = {
    "data_wait_seconds": 6.0, "images_per_second": 200.0, "cpu_ms_per_image": 6.5, "loading_cpu_ms_per_image": 4.9,
    "idle_cores": 0.7,
}  # fmt: skip
FULL_CORES = {
    "data_wait_seconds": 4.0, "images_per_second": 200.0, "cpu_ms_per_image": 9.8, "loading_cpu_ms_per_image": 7.0,
    "idle_cores": 0.05,
}  # fmt: skip
AUGMENTATION = {"augment_seconds": 5.0, "data_wait_seconds": 0.2, "idle_cores": 0.4, "loading_cpu_ms_per_image": 0.5}


@pytest.mark.parametrize(
    ("record", "num_workers", "cause", "words"),
    [
        pytest.param(
            SLOW_DISK,
            2,
            "disk",
            "nothing to decode 85 % of the time: reading is the limit, 5 MB/s (100 images/s of 50 kB)",
            id="slow disk",
        ),
        pytest.param(SLOW_DISK, 1, "disk", "more workers (now 1) help only where", id="slow disk, one worker"),
        pytest.param(AUGMENTATION, 1, "augmentation", "it took 50 % of the training time", id="heavy augmentation"),
        pytest.param({}, 2, "model", "The model is the limit", id="slow model"),
        pytest.param(FEW_WORKERS, 1, "workers", "(--num-workers 2, now 1)", id="too few workers"),
        pytest.param(FEW_WORKERS, 0, "workers", "(--num-workers 2, now 0)", id="no workers"),
        pytest.param(FULL_CORES, 2, "cores", "2 workers use all of the 2 cores", id="all cores busy"),
        pytest.param(
            FULL_CORES, 1, "cores", "no core was left for another worker beside 1", id="all cores busy, one worker"
        ),
    ],
)
def test_constructed_cases(record: dict[str, float], num_workers: int, cause: str, words: str) -> None:
    found = judged([epoch(0, **record), epoch(1, **record)], num_workers=num_workers)
    assert found.cause == cause
    assert words in found.sentence


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        pytest.param({"augment_seconds": 2.5}, "augmentation", id="augmentation at the threshold"),
        pytest.param({"augment_seconds": 2.4}, "model", id="augmentation below it"),
        pytest.param(
            {"augment_seconds": 3.0, "data_wait_seconds": 3.5}, "workers", id="more waiting than augmentation"
        ),
        pytest.param({"augment_seconds": 3.5, "data_wait_seconds": 3.0}, "augmentation", id="less waiting"),
        pytest.param({"data_wait_seconds": 1.0}, "workers", id="waiting at the threshold"),
        pytest.param({"data_wait_seconds": 0.99}, "model", id="waiting below it"),
        pytest.param(
            {**SLOW_DISK, "idle_cores": 0.0, "loading_queued_ms_per_image": 0.0}, "disk", id="others use the cores"
        ),
        pytest.param({**SLOW_DISK, "idle_cores": 0.0}, "cores", id="perhaps a worker waits for a core"),
        pytest.param({**SLOW_DISK, "loading_queued_ms_per_image": 4.1}, "workers", id="a worker waits for a core"),
        pytest.param({**FEW_WORKERS, "idle_cores": 0.3}, "workers", id="cores idle at the threshold"),
        pytest.param({**FEW_WORKERS, "idle_cores": 0.29}, "cores", id="cores hardly idle"),
        pytest.param({**SLOW_DISK, "loading_cpu_ms_per_image": 6.9}, "disk", id="a worker waits a little"),
        pytest.param({**SLOW_DISK, "loading_cpu_ms_per_image": 7.1}, "workers", id="a worker hardly waits"),
    ],
)
def test_thresholds(record: dict[str, float], cause: str) -> None:
    assert judged([epoch(0, **record), epoch(1, **record)], num_workers=1).cause == cause


def test_what_the_tuner_has_tried_is_not_advised() -> None:
    slow = [epoch(0, **SLOW_DISK)]
    assert "more workers" in judge(slow, num_workers=1)
    assert "more workers" not in judge(slow, num_workers=1, tuned=True)
    few = judged([epoch(0, **FEW_WORKERS)], num_workers=1, tuned=True)
    assert few.cause == "loader"
    assert (
        " while 0.7 of 2 cores had nothing to do: the loader is the limit; more than 1 worker brought" in few.sentence
    )
    full = judged([epoch(0, **FULL_CORES)], num_workers=1, tuned=True)
    assert full.cause == "cores"
    assert "1 of 2 cores for workers proved best, as the model needs the others" in full.sentence


def test_smaller_files_are_advised_by_the_loader() -> None:
    assert "--loader roi packs" in judge([epoch(0, **SLOW_DISK)], loader="torch")
    assert "--pack-side" in judge([epoch(0, **SLOW_DISK)], loader="roi")


def test_waiting_for_the_first_batch_of_short_epochs_is_no_disk() -> None:
    short = {"data_wait_seconds": 1.2, "loading_cpu_ms_per_image": 1.0, "idle_cores": 0.8, "images_per_second": 100.0}
    assert judged([epoch(n, batch_size=600, **short) for n in range(2)]).cause == "loader"
    assert judged([epoch(n, batch_size=60, **short) for n in range(2)]).cause == "disk"
    assert judged([epoch(n, batch_size=600, **short) for n in range(2)], world_size=8).cause == "disk", "75 for each"


def test_starting_the_loader_is_no_disk() -> None:
    started = epoch(0, data_wait_seconds=8.2, start_seconds=8.0, loading_cpu_ms_per_image=0.5, idle_cores=1.0)
    found = judged([started, *(epoch(n, loading_cpu_ms_per_image=0.5, idle_cores=1.0) for n in (1, 2))])
    assert found.cause == "model"
    assert "96 % of the training time was spent computing (4 % waiting" in found.sentence
    assert found.sentence.endswith("(8.0 s in which the loader started are left out).")
    few = judged([started | {"seconds": 22.0, "train_seconds": 20.0, "data_wait_seconds": 18.0, "start_seconds": 8.0}])
    assert few.cause == "disk", "of the 12 s after the start 10 waited"
    assert few.sentence.startswith("83 % of the training time waited for data")


def test_a_run_that_mostly_started_is_told_so() -> None:
    found = judged(
        [epoch(0, seconds=41.0, train_seconds=38.0, data_wait_seconds=32.0, start_seconds=31.0), epoch(1, seconds=11.0)]
    )
    assert found.cause == "start"
    assert found.sentence.startswith("Starting the loader took 60 % of the time: 31 s until its first batch came")
    assert judge([epoch(0, train_seconds=6.0, data_wait_seconds=4.0, start_seconds=3.5)]).startswith(
        "The run was too short to judge: 2.5 s of training"
    )


def test_after_a_resume_each_start_is_left_out() -> None:
    started = {"data_wait_seconds": 3.3, "start_seconds": 3.0}
    assert judged([epoch(0, **started), epoch(1), epoch(2, **started), epoch(3)]).cause == "model"
    assert judged([epoch(0, **started), epoch(1), epoch(2, data_wait_seconds=3.3), epoch(3)]).cause == "cores"


SEARCH = {"search_seconds": 8.0, "search_wait_seconds": 6.0, "search_samples": 1000.0, "tuned": True}


def test_what_went_by_while_workers_were_looked_for_shows_no_limit() -> None:
    """With one worker training waited; with those that were found it does not, and nothing is wrong with the disk."""
    first = epoch(0, seconds=22.0, train_seconds=20.0, data_wait_seconds=6.2, loading_cpu_ms_per_image=0.5, **SEARCH)
    assert judged([{**first, "search_seconds": 0.0}], idle_cores=1.0).cause == "disk"
    found = judged([first], idle_cores=1.0)
    assert found.cause == "model"
    assert "98 % of the training time was spent computing (2 % waiting" in found.sentence
    assert found.sentence.endswith(
        "(8.0 s in which the loader started and its number of workers was found are left out)."
    )


def test_the_rate_after_the_search_is_what_the_disk_gives() -> None:
    # 2,000 images in 20 s, of them 1,000 in the 8 s of the search: 1,000 in 12 s are left.
    record = SLOW_DISK | SEARCH | {"seconds": 22.0, "train_seconds": 20.0, "data_wait_seconds": 16.0}
    assert "4.17 MB/s (83 images/s of 50 kB)" in judge([epoch(0, **record)])


def test_a_run_that_ends_with_the_search_is_not_judged() -> None:
    searched = SEARCH | {"search_seconds": 9.0, "data_wait_seconds": 7.0}
    assert judge([epoch(0, **searched)]).startswith(
        "The run was too short to judge: 9 s of training went by while the number of workers was found, 1.0 s after it;"
    )
    whole = SEARCH | {"search_seconds": 10.0, "search_wait_seconds": 7.0, "data_wait_seconds": 7.0}
    assert judged([epoch(0, **whole)]).cause == "none"


def test_other_programs_are_named() -> None:
    # 500 images/s at 1.9 ms: 0.95 cores. Of four cores 0.8 were idle: others took 2.25.
    busy = epoch(0, idle_cores=0.8)
    assert judge([busy], cores=4.0).endswith(" (other processes took 2.2 of 4 cores meanwhile).")
    assert "other processes" not in judge([busy], cores=2.0), "0.25 of 2"
    assert "other processes" not in judge([epoch(0)], cores=4.0), "nothing is known"
    assert "took 2.7 of 4 cores" in judge([busy], cores=4.0, world_size=2), "each process has trained on half of them"


def test_a_gpu_that_decodes_is_no_disk() -> None:
    on_gpu = judged([epoch(0, **SLOW_DISK)], loader="dali", device="cuda")
    assert on_gpu.cause == "loader"
    assert "1.5 of 2 cores had nothing to do: the GPU's decoder is the limit" in on_gpu.sentence
    assert judged([epoch(0, **SLOW_DISK | {"idle_cores": 0.1})], loader="dali", device="cuda").cause == "cores"
    assert judged([epoch(0, **SLOW_DISK)], loader="dali", device="cpu").cause == "disk"


def test_roi_has_a_thread_for_each_core_at_most() -> None:
    full = {**SLOW_DISK, "loading_cpu_ms_per_image": 18.0, "idle_cores": 0.1}
    assert judged([epoch(0, **full)], loader="roi", num_workers=8).cause == "cores"


def test_on_a_gpu_augmentation_is_part_of_the_step() -> None:
    assert judged([epoch(0, augment_seconds=0.0)], device="cuda").cause == "model"


def test_several_processes_read_together() -> None:
    # 100 images/s in all, 50 in each process: its two workers compute 5 * 50 / 1000 = 0.25 cores' worth.
    found = judged([epoch(0, **SLOW_DISK | {"loading_cpu_ms_per_image": 5.0})], world_size=2)
    assert found.cause == "disk"
    assert "5 MB/s" in found.sentence


def test_a_single_stage_is_not_named() -> None:
    assert "stage" not in judge([epoch(0, data_wait_seconds=4.1)])


def test_on_a_gpu_the_cores_that_the_model_needs_are_computed() -> None:
    # 500 images/s over 10 s, 5 s of them computing: the model could take 1,000 images/s, at 4 ms each 4 cores.
    text = judge([epoch(0, data_wait_seconds=5.0, cpu_ms_per_image=4.0)], device="cuda")
    assert "the 1,000 images/s that the model could take need 4.0 cores of the 2 there are" in text
    assert "2 workers use all of the 2 cores: decode on the GPU (--loader dali)" in text


def test_several_gpus_share_the_images() -> None:
    text = judge([epoch(0, data_wait_seconds=5.0, cpu_ms_per_image=4.0)], device="cuda", world_size=4)
    assert "the 250 images/s that each GPU could take need 1.0 cores of the 2 there are" in text


def test_dali_is_not_advised_to_who_uses_it() -> None:
    text = judge([epoch(0, data_wait_seconds=5.0)], loader="dali", num_workers=1, cores=1.0)
    assert "--loader" not in text
    assert "1 worker uses all of the 1 core:" in text


@pytest.mark.parametrize(
    ("changes", "start", "advice"),
    [
        ({"seconds": 20.0, "val_seconds": 9.0}, "Evaluation took 45 % of the time (9 of 20 s)", "--limit-val"),
        ({"seconds": 20.0, "switch_seconds": 8.0}, "Warming up for 1 size took 40 %", "--resolutions"),
        ({"seconds": 30.0}, "61 % of the time (18 of 30 s) went neither", "--save-every"),
    ],
)
def test_other_causes(changes: dict[str, float], start: str, advice: str) -> None:
    text = judge([epoch(0, **changes)])
    assert text.startswith(start)
    assert advice in text


def test_the_larger_cause_wins() -> None:
    waits = epoch(0, data_wait_seconds=6.0, seconds=16.0, val_seconds=5.5)
    assert "waited for data" in judge([waits])
    assert judge([waits | {"val_seconds": 10.0, "seconds": 21.0}]).startswith("Evaluation took")


def test_short_and_empty_runs_are_not_judged() -> None:
    assert judge([epoch(0, train_seconds=1.2)]).startswith("The run was too short to judge: 1.2 s of training")
    assert "nothing to judge" in judge([])
    assert "nothing to judge" in judge([{"kind": "step", "step": 3, "loss": 1.0}])


def test_missing_fields_are_none_not_an_error() -> None:
    text = judge([{"kind": "epoch", "epoch": 0, "seconds": 10.0, "train_seconds": 10.0, "data_wait_seconds": 5.0}])
    assert text.startswith("50 % of the training time waited for data; ")


def test_after_a_resume_the_later_record_of_an_epoch_counts() -> None:
    records = [epoch(0, top1=1.0), epoch(1, top1=2.0), {"kind": "step"}, epoch(1, top1=3.0), epoch(2, top1=4.0)]
    assert [record["top1"] for record in epoch_records(records)] == [1.0, 3.0, 4.0]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                key: st.floats(0, 1e5)
                for key in (
                    "seconds",
                    "train_seconds",
                    "val_seconds",
                    "data_wait_seconds",
                    "start_seconds",
                    "search_seconds",
                    "search_wait_seconds",
                    "search_samples",
                    "augment_seconds",
                    "switch_seconds",
                    "images_per_second",
                    "cpu_ms_per_image",
                    "loading_cpu_ms_per_image",
                    "loading_queued_ms_per_image",
                    "idle_cores",
                    "bytes_per_image",
                )
            }
        ),
        max_size=4,
    ),
    st.sampled_from(["cpu", "cuda"]),
)
def test_any_record_gives_one_sentence_with_possible_percentages(records: list[dict[str, float]], device: str) -> None:
    text = judge([{"kind": "epoch", "epoch": n} | record for n, record in enumerate(records)], device=device)
    assert text.endswith(".")
    assert text.count(". ") == 0
    assert "nan" not in text
    assert "inf " not in text
    assert all(0 <= int(number) <= 100 for number in re.findall(r"(\d+) %", text))
