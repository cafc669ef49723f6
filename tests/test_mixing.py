"""Mixup and CutMix: images and labels mixed in the same proportion, drawn anew for each batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loaders.mixing import MixedLabels, mix


def numbered_images(count: int, height: int = 12, width: int = 10) -> torch.Tensor:
    """Return images of one value each: their number."""
    images = torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(-1, 3, height, width)
    return images.contiguous(memory_format=torch.channels_last)


def mixed(key: int, mixup: float, cutmix: float, count: int = 16, seed: int = 0) -> tuple[torch.Tensor, MixedLabels]:
    images = numbered_images(count)
    return images, mix(images, torch.arange(count), seed, 0, key, mixup, cutmix)


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
    images = torch.rand(8, 3, 12, 10)
    before = images.clone()
    labels = mix(images, torch.arange(8), 0, 0, 5, 0.0, 1.0)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_type_and_layout_stay(dtype: torch.dtype) -> None:
    for mixup, cutmix in ((0.5, 0.0), (0.0, 1.0)):
        images = numbered_images(4).to(dtype)
        labels = mix(images, torch.arange(4), 0, 0, 0, mixup, cutmix)
        assert images.dtype == dtype
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.weight.dtype == torch.float32
        assert labels.other_labels.dtype == torch.int64


@pytest.mark.parametrize("alphas", [(0.5, 0.0), (0.0, 1.0)])
def test_a_single_image_stays_itself(alphas: tuple[float, float]) -> None:
    images, labels = mixed(0, *alphas, count=1)
    assert torch.equal(images, numbered_images(1))
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
    mix(images.clone(), labels, 0, 0, 1, *alphas)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_device = mix(images, labels, 0, 0, 1, *alphas)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, expected_labels = mixed(1, *alphas)
    torch.testing.assert_close(images.cpu(), expected)
    torch.testing.assert_close(on_device.weight.cpu(), expected_labels.weight)
    assert torch.equal(on_device.other_labels.cpu(), expected_labels.other_labels)
