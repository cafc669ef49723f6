"""Tests of engine.losses, against torch.nn.functional.cross_entropy."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, one_hot, softmax

from engine.losses import class_weights, classification_loss

CLASSES = 5


def sample(seed: int = 0, count: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits, labels, other labels and shares."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, CLASSES, generator=generator) * 3
    labels, others = torch.randint(0, CLASSES, (2, count), generator=generator)
    return logits, labels, others, torch.rand(count, generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_cross_entropy(smoothing: float, weighted: bool):
    logits, labels, _, _ = sample()
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0]) if weighted else None
    expected = cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="none")
    actual = classification_loss(logits, labels, smoothing=smoothing, weights=weights)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_mixed_labels_equal_soft_targets(smoothing: float, weighted: bool):
    logits, labels, others, shares = sample(1)
    weights = torch.tensor([0.5, 1.0, 2.0, 0.3, 3.0]) if weighted else None
    targets = shares[:, None] * one_hot(labels, CLASSES) + (1 - shares)[:, None] * one_hot(others, CLASSES)
    expected = cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing, reduction="none")
    actual = classification_loss(
        logits, labels, other_labels=others, label_shares=shares, smoothing=smoothing, weights=weights
    )
    torch.testing.assert_close(actual, expected)


def test_focal_follows_its_definition():
    logits, labels, _, _ = sample(2)
    probability = softmax(logits.double(), 1).gather(1, labels[:, None]).squeeze(1)
    expected = -((1 - probability) ** 2) * probability.log()
    actual = classification_loss(logits.double(), labels, focal_gamma=2.0)
    torch.testing.assert_close(actual, expected.float())


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_for_certain_predictions(gamma: float):
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]], requires_grad=True)
    loss = classification_loss(logits, torch.tensor([0, 0]), focal_gamma=gamma, smoothing=0.1)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@settings(deadline=None)
@given(seed=st.integers(0, 1000), gamma=st.floats(0.1, 5))
def test_focal_is_at_most_cross_entropy_and_not_negative(seed: int, gamma: float):
    logits, labels, _, _ = sample(seed)
    focal = classification_loss(logits, labels, focal_gamma=gamma)
    assert (focal >= 0).all()
    assert (focal <= classification_loss(logits, labels) + 1e-6).all()


def test_computed_in_float32():
    logits, labels, _, _ = sample(3)
    loss = classification_loss(logits.bfloat16(), labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(logits.bfloat16().float(), labels, reduction="none"))


def test_empty_batch():
    assert classification_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), smoothing=0.1).shape == (0,)


def test_no_weights():
    assert class_weights("none", [1, 2]) is None


@settings(deadline=None)
@given(
    kind=st.sampled_from(["inverse", "effective"]),
    counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=30).filter(any),
)
def test_weights_have_mean_one_and_fall_with_the_count(kind, counts):
    weights = class_weights(kind, counts)
    assert weights is not None and weights.dtype == torch.float32
    count = np.array(counts, float)
    assert (weights.double().numpy() * count).sum() / count.sum() == pytest.approx(1, rel=1e-5)
    present = [(n, w) for n, w in zip(counts, weights.tolist(), strict=True) if n]
    assert all(w == 0 for n, w in zip(counts, weights.tolist(), strict=True) if n == 0)
    by_count = [w for _, w in sorted(present)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(by_count))


def test_inverse_weights_make_classes_equal():
    weights = class_weights("inverse", [10, 40])
    torch.testing.assert_close(weights, torch.tensor([2.5, 0.625]))


def test_effective_numbers_follow_the_paper():
    counts, beta = [5, 500, 50_000], 0.999
    weights = class_weights("effective", counts, beta=beta)
    assert weights is not None
    expected = [(1 - beta) / (1 - beta**n) for n in counts]
    assert weights[0].item() / weights[2].item() == pytest.approx(expected[0] / expected[2], rel=1e-5)
    assert weights[1].item() / weights[2].item() == pytest.approx(expected[1] / expected[2], rel=1e-5)
    equal = class_weights("effective", counts, beta=0.0)
    assert equal is not None and equal.tolist() == pytest.approx([1, 1, 1])


def test_weights_refuse_what_they_cannot_do():
    with pytest.raises(ValueError, match="inverse"):
        class_weights("sqrt", [1, 2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sample"):
        class_weights("inverse", [0, 0])


def test_uniform_logits_cost_log_classes():
    loss = classification_loss(torch.zeros(2, 4), torch.tensor([0, 3]), smoothing=0.3)
    assert loss.tolist() == pytest.approx([math.log(4)] * 2)
