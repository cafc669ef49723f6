from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.verdict import epoch_records, time_spent, verdict


def epoch(number: int, resolution: int = 128, stage: int = 0, **changes: Any) -> dict[str, Any]:
    record = {
        "kind": "epoch", "epoch": number, "stage": stage, "resolution": resolution, "images_per_second": 500.0,
        "seconds": 12.0, "train_seconds": 10.0, "val_seconds": 1.5, "data_wait_seconds": 0.3, "switch_seconds": 0.2,
        "cpu_ms_per_image": 1.9,
    }  # fmt: skip
    return record | changes


def judge(records: list[dict[str, Any]], **changes: Any) -> str:
    options: dict[str, Any] = {"num_workers": 2, "cores": 2.0, "device": "cpu", "loader": "torch"}
    return verdict(records, **options | changes)


def test_time_adds_up_to_the_run() -> None:
    spent = time_spent([epoch(0), epoch(1)])
    assert spent.total == pytest.approx(24.0)
    assert spent.compute == pytest.approx(19.4)
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
                    "switch_seconds",
                    "images_per_second",
                    "cpu_ms_per_image",
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
