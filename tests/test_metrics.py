from __future__ import annotations

import csv
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.metrics import (
    ClassificationMetrics,
    write_class_counts_csv,
    write_confusion_csv,
    write_per_class_csv,
)


def outputs(count: int, num_classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (count,), generator=generator)
    logits = torch.randn(count, num_classes, generator=generator)
    logits[torch.arange(count), labels] += 1.0
    return logits, labels


def metrics_of(logits: torch.Tensor, labels: torch.Tensor, splits: list[int]) -> ClassificationMetrics:
    metrics = ClassificationMetrics(logits.shape[1])
    for part_logits, part_labels in zip(logits.split(splits), labels.split(splits), strict=True):
        metrics.update(part_logits, part_labels)
    return metrics


@pytest.mark.parametrize("num_classes", [2, 5, 10, 100])
def test_agrees_with_torchmetrics(num_classes: int) -> None:
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = outputs(500, num_classes)
    result = metrics_of(logits, labels, [200, 200, 100]).compute()
    options = {"num_classes": num_classes}
    top1 = torchmetrics.multiclass_accuracy(logits, labels, average="micro", **options)
    top5 = torchmetrics.multiclass_accuracy(logits, labels, average="micro", top_k=min(5, num_classes), **options)
    confusion = torchmetrics.multiclass_confusion_matrix(logits, labels, **options)
    assert result.top1 == pytest.approx(100 * top1.item(), abs=1e-4)
    assert result.top5 == pytest.approx(100 * top5.item(), abs=1e-4)
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert result.count == 500
    np.testing.assert_array_equal(result.confusion, confusion.numpy())


def test_agrees_with_torchmetrics_where_classes_are_missing() -> None:
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    logits, labels = outputs(300, 8)
    keep = labels != 3  # class 3 has no images
    logits, labels = logits[keep], labels[keep]
    logits[:, 5] = -100.0  # class 5 is never predicted
    scores = metrics_of(logits, labels, [len(labels)]).compute().per_class
    for name in ("precision", "recall", "f1_score"):
        function = partial(getattr(torchmetrics, f"multiclass_{name}"), logits, labels, num_classes=8, average="none")
        zero, one = function(zero_division=0).numpy(), function(zero_division=1).numpy()
        expected = np.where(zero == one, zero, np.nan)  # what is undefined, torchmetrics makes what it is told
        np.testing.assert_allclose(getattr(scores, name.removesuffix("_score")), expected, rtol=1e-6)
    np.testing.assert_array_equal(scores.support, np.bincount(labels, minlength=8))
    assert np.isnan(scores.recall[3])
    assert np.isnan(scores.precision[5])
    assert scores.f1[5] == 0


@settings(max_examples=30, deadline=None)
@given(cut=st.lists(st.integers(0, 60), min_size=1, max_size=5), num_classes=st.integers(1, 12))
def test_the_cut_into_batches_does_not_matter(cut: list[int], num_classes: int) -> None:
    logits, labels = outputs(sum(cut), num_classes)
    parts, whole = metrics_of(logits, labels, cut).compute(), metrics_of(logits, labels, [sum(cut)]).compute()
    np.testing.assert_array_equal(parts.confusion, whole.confusion)
    assert (parts.top5, parts.count) == pytest.approx((whole.top5, whole.count), nan_ok=True)
    assert parts.loss == pytest.approx(whole.loss, nan_ok=True)


def test_losses_are_taken_when_given_and_half_precision_is_summed_exactly() -> None:
    metrics = ClassificationMetrics(10)
    logits, labels = outputs(100, 10)
    for _ in range(50):
        metrics.update(logits.bfloat16(), labels, torch.full((100,), 0.1, dtype=torch.bfloat16))
    assert metrics.compute().loss == pytest.approx(float(torch.tensor(0.1, dtype=torch.bfloat16)))


def test_nothing_evaluated_is_undefined_not_zero() -> None:
    metrics = ClassificationMetrics(3)
    metrics.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    result = metrics.compute()
    assert result.count == 0
    assert np.isnan(result.top1)
    assert np.isnan(result.loss)


def _reduce_in_process(rank: int, path: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    logits, labels = outputs(101, 7)
    metrics = ClassificationMetrics(7)
    metrics.update(logits[rank::2], labels[rank::2])
    metrics.reduce()
    result = metrics.compute()
    torch.save((result.top1, result.top5, result.loss, torch.from_numpy(result.confusion)), f"{results}{rank}")
    dist.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path) -> None:
    mp.spawn(_reduce_in_process, (str(tmp_path / "store"), str(tmp_path / "result")), nprocs=2)
    logits, labels = outputs(101, 7)
    expected = metrics_of(logits, labels, [101]).compute()
    for rank in range(2):
        top1, top5, loss, confusion = torch.load(f"{tmp_path}/result{rank}")
        assert (top1, top5) == (expected.top1, expected.top5)
        assert loss == pytest.approx(expected.loss)
        np.testing.assert_array_equal(confusion.numpy(), expected.confusion)


def test_tables_are_written(tmp_path) -> None:
    metrics = ClassificationMetrics(3)
    metrics.update(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 1, 1]))
    result, classes = metrics.compute(), ["cat", "dog, big", "owl"]
    write_confusion_csv(tmp_path / "confusion.csv", result, classes)
    write_per_class_csv(tmp_path / "per_class.csv", result, classes)
    write_class_counts_csv(tmp_path / "class_counts.csv", classes, np.array([5, 6, 7]), np.array([1, 2, 0]))
    read = {p.name: list(csv.reader(p.open())) for p in tmp_path.iterdir()}
    assert read["confusion.csv"][2] == ["dog, big", "1", "1", "0"]
    assert read["per_class.csv"] == [
        ["class", "precision", "recall", "f1", "support"],
        ["cat", "0.5000", "1.0000", "0.6667", "1"],
        ["dog, big", "1.0000", "0.5000", "0.6667", "2"],
        ["owl", "", "", "", "0"],
    ]
    assert read["class_counts.csv"][3] == ["owl", "7", "0"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_update_never_waits_for_the_device() -> None:
    logits, labels = (t.cuda() for t in outputs(64, 10))
    metrics = ClassificationMetrics(10, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        metrics.update(logits, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metrics.compute().count == 64
