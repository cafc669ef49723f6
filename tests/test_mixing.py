"""Mixup and CutMix: images and labels mixed in the same proportion, drawn anew for each batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.fused import CutMix, Mixup, fuse
from loaders.mixing import MixedLabels, draw_mix


def apply(images: torch.Tensor, mixing: Mixup | CutMix, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return fuse(images, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), dtype, mix=mixing)


def numbered_images(count: int, height: int = 12, width: int = 10) -> torch.Tensor:
    """Return images of one value each: their number."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, height, width).contiguous()


def mixed(key: int, mixup: float, cutmix: float, count: int = 16, seed: int = 0) -> tuple[torch.Tensor, MixedLabels]:
    mixing, labels = draw_mix(torch.arange(count), seed, 0, key, mixup, cutmix, 12, 10)
    return apply(numbered_images(count), mixing), labels


def is_cutmix(images: torch.Tensor, labels: MixedLabels) -> bool:
    own, other = labels.labels[:, None, None, None], labels.other_labels[:, None, None, None]
    return bool(((images == own) | (images == other)).all())


@pytest.mark.parametrize("key", range(8))
def test_mixup_blends_images_as_labels(key: int) -> None:
    images, labels = mixed(key, 0.8, 0.0)
    blend = labels.weight * labels.labels + (1 - labels.weight) * labels.other_labels
    torch.testing.assert_close(images, blend[:, None, None, None].expand_as(images))


@pytest.mark.parametrize("key", range(8))
def test_cutmix_shares_labels_by_pixels(key: int) -> None:
    images, labels = mixed(key, 0.0, 1.0)
    assert is_cutmix(images, labels)
    different = labels.labels != labels.other_labels
    own = (images == labels.labels[:, None, None, None]).float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(labels.weight[different], own[different])


def test_cutmix_pastes_one_rectangle_from_the_same_place() -> None:
    before = torch.randint(0, 256, (8, 3, 12, 10), dtype=torch.uint8)
    mixing, labels = draw_mix(torch.arange(8), 0, 0, 5, 0.0, 1.0, 12, 10)
    images = apply(before, mixing).round().to(torch.uint8)
    partner = before[labels.other_labels]
    pasted = (images != before).any(dim=1).any(dim=0)
    rows, columns = pasted.any(dim=1), pasted.any(dim=0)
    assert torch.equal(pasted, rows[:, None] & columns)
    assert torch.equal(images, torch.where(pasted, partner, before))


def test_every_image_is_a_partner_once() -> None:
    _, labels = mixed(0, 0.2, 1.0)
    assert sorted(labels.other_labels.tolist()) == list(range(16))


def test_both_on_takes_turns() -> None:
    chosen = [is_cutmix(*mixed(key, 1.0, 1.0)) for key in range(400)]
    assert 150 < sum(chosen) < 250


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixups_share_is_beta_distributed(alpha: float) -> None:
    shares = np.array([float(mixed(key, alpha, 0.0, count=2)[1].weight[0]) for key in range(2000)])
    assert abs(shares.mean() - 0.5) < 0.03
    assert abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_the_same_draws_for_the_same_batch_and_others_for_others() -> None:
    first = mixed(3, 0.5, 1.0)[0]
    assert torch.equal(first, mixed(3, 0.5, 1.0)[0])
    assert not torch.equal(first, mixed(4, 0.5, 1.0)[0])
    assert not torch.equal(first, mixed(3, 0.5, 1.0, seed=1)[0])


def test_types() -> None:
    for alphas in ((0.5, 0.0), (0.0, 1.0)):
        labels = mixed(0, *alphas)[1]
        assert labels.weight.dtype == torch.float32
        assert labels.other_labels.dtype == torch.int64


@pytest.mark.parametrize("alphas", [(0.5, 0.0), (0.0, 1.0)])
def test_a_single_image_stays_itself(alphas: tuple[float, float]) -> None:
    images, labels = mixed(0, *alphas, count=1)
    assert torch.equal(images, numbered_images(1).float())
    assert labels.other_labels.tolist() == [0]
    assert 0 <= float(labels.weight[0]) <= 1


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 1e3])
def test_extreme_alphas_give_shares(alpha: float) -> None:
    for key in range(20):
        for alphas in ((alpha, 0.0), (0.0, alpha)):
            weight = mixed(key, *alphas)[1].weight
            assert ((weight >= 0) & (weight <= 1)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("alphas", [(0.5, 0.0), (0.0, 1.0)])
def test_cuda_gives_what_the_cpu_gives_and_never_waits(alphas: tuple[float, float]) -> None:
    images, labels = numbered_images(16).cuda(), torch.arange(16).cuda()
    apply(images, draw_mix(labels, 0, 0, 1, *alphas, 12, 10)[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixing, on_device = draw_mix(labels, 0, 0, 1, *alphas, 12, 10)
        result = apply(images, mixing)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, expected_labels = mixed(1, *alphas)
    torch.testing.assert_close(result.cpu(), expected)
    torch.testing.assert_close(on_device.weight.cpu(), expected_labels.weight)
    assert torch.equal(on_device.other_labels.cpu(), expected_labels.other_labels)
