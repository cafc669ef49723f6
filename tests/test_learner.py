"""One optimizer step: its gradient, what it does with odd batches, and that warming up leaves no trace."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from engine.config import Config
from engine.distributed import Process
from engine.learner import Learner, LossOptions, StepOptions, num_parts, part_sizes
from engine.optim import create_optimizer, parameter_groups
from engine.precision import resolve_amp
from engine.setup import create_learner
from loaders.plan import BatchPlan, View
from loaders.transfer import DeviceBatch
from tests.folders import image_folder, opened

ALONE = Process(rank=0, world=1, local_rank=0, local_world=1, device=torch.device("cpu"))


def learner_of(model: nn.Module, process: Process = ALONE, **options: object) -> Learner:
    optimizer = create_optimizer("sgd", parameter_groups(model, 0.0), lr=0.1)
    amp = resolve_amp("off", ALONE.device)
    return Learner(model, optimizer, process, amp, LossOptions(smoothing=0.1), StepOptions(**options))  # type: ignore[arg-type]


def batch_of(count: int, seed: int = 0, mixed: bool = False) -> DeviceBatch:
    generator = torch.Generator().manual_seed(seed)
    rows = np.arange(count)
    plan = BatchPlan(0, 0, 0, View(32, max(count, 1)), rows, rows.astype(np.uint64), np.zeros((count, 4)), rows > 0)
    labels = torch.randint(0, 4, (count,), generator=generator)
    return DeviceBatch(
        images=torch.randn(count, 3, 32, 32, generator=generator),
        labels=labels,
        other_labels=labels.flip(0) if mixed else None,
        weight=torch.rand(count, generator=generator) if mixed else None,
        indices=torch.from_numpy(rows),
        plan=plan,
        wait_seconds=0.0,
    )


def without_batch_norm(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("count", "parts"), [(12, 3), (11, 4), (5, 8), (1, 2)])
def test_accumulation_gives_the_gradient_of_the_whole(count: int, parts: int, mixed: bool) -> None:
    whole, split = without_batch_norm(), without_batch_norm()
    learner_of(whole).step(batch_of(count, mixed=mixed), count, True, 1.0, 1)
    learner_of(split, grad_accum_steps=parts).step(batch_of(count, mixed=mixed), count, True, 1.0, 1)
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_shares_of_a_batch_add_up() -> None:
    """Two ranks' gradients, each a share of the global mean, average to one process's: here by hand."""
    batch, model = batch_of(9), without_batch_norm()
    learner = learner_of(model)
    learner._backward(batch, 9, True)
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    learner.optimizer.zero_grad()
    for rows in (slice(0, 9, 2), slice(1, 9, 2)):
        share = DeviceBatch(
            batch.images[rows], batch.labels[rows], None, None, batch.indices[rows], batch.plan, wait_seconds=0.0
        )
        learner._backward(share, 9, True)
    for gradient, parameter in zip(expected, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_sync_bn_changes_no_activation(tmp_path: Path) -> None:
    data = opened(image_folder(tmp_path / "colors", train=3, val=3), tmp_path)
    usual = Config()
    models = []
    for sync_bn in (False, True):
        config = replace(
            usual,
            model=replace(usual.model, model="test_efficientnet", amp="off", sync_bn=sync_bn),
            optimizer=replace(usual.optimizer, lr=0.1, weight_decay=0.0),
            resolution=replace(usual.resolution, resolutions=(32,), val_resolution=32),
        )
        models.append(create_learner(config, data, ALONE)[0].model.eval())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in models[1].modules())
    images = batch_of(2).images
    torch.testing.assert_close(models[1](images), models[0](images))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("parts", [1, 2, 5, 8])
def test_all_ranks_split_their_shares_into_as_many_parts(world: int, parts: int) -> None:
    for count in range(1, 100):
        shares = [len(range(rank, count, world)) for rank in range(world)]
        split = [part_sizes(share, num_parts(count, world, parts)) for share in shares]
        assert [sum(sizes) for sizes in split] == shares
        assert len({len(sizes) for sizes in split}) == 1
        if count >= world:
            assert min(min(sizes) for sizes in split) > 0
            assert len(split[0]) == min(parts, min(shares))
        sizes = {size for of_rank in split for size in of_rank}
        assert max(sizes) - min(sizes) <= 1


def passes(learner: Learner) -> list[int]:
    """Return a list that grows by the number of images of each forward pass."""
    sizes: list[int] = []
    learner.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    return sizes


def test_uneven_shares_take_as_many_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With SyncBN every pass is an exchange between the ranks, which a pass of one rank alone would wait for."""
    monkeypatch.setattr(Learner, "_distributed", lambda self, model: model)
    for rank, share in enumerate((36, 35)):
        process = replace(ALONE, rank=rank, world=2)
        learner = learner_of(without_batch_norm(), process, grad_accum_steps=8)
        sizes = passes(learner)
        learner.step(batch_of(share), 71, True, 1.0, 1)
        assert sizes == [5] * (share - 32) + [4] * (40 - share)
        sizes.clear()
        learner.warm_up(71, 32)
        assert sizes == [5] * (share - 32) + [4] * (40 - share)


@pytest.mark.parametrize("count", [0, 1])
def test_tiny_shares_are_trained_with_batch_norm(count: int) -> None:
    model = timm.create_model("resnet10t", num_classes=4)
    learner = learner_of(model)
    model.train()
    learner.step(batch_of(count), 8, False, 1.0, 1)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert learner.sums[2] == count


def test_warming_up_leaves_no_trace() -> None:
    model = timm.create_model("resnet10t", num_classes=4, drop_rate=0.2)
    learner = learner_of(model)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    learner.warm_up(4, 48)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_skipped_step_changes_nothing() -> None:
    model = timm.create_model("resnet10t", num_classes=4)
    learner = learner_of(model, skip_nonfinite=True)
    model.train()
    before = copy.deepcopy(model.state_dict())
    batch = batch_of(4)
    batch.images[2, 0, 5, 5] = float("nan")
    learner.step(batch, 4, True, 1.0, 1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert learner.sums.tolist() == [0, 0, 0, 1]
    learner.step(batch_of(4), 4, True, 1.0, 2)
    assert learner.sums[2] == 4


def test_the_first_nonfinite_step_is_remembered() -> None:
    learner = learner_of(without_batch_norm())
    learner.step(batch_of(4), 4, True, 1.0, 1)
    bad = batch_of(4)
    bad.images.fill_(float("inf"))
    for number in (2, 3):
        learner.step(bad, 4, True, 1.0, number)
    assert learner.first_nonfinite == 2


def test_a_compiled_step_is_the_plain_one() -> None:
    plain, compiled = without_batch_norm(), without_batch_norm()
    learner_of(plain).step(batch_of(6), 6, True, 1.0, 1)
    learner = learner_of(compiled, compile=True)
    learner.warm_up(6, 32)
    learner.step(batch_of(6), 6, True, 1.0, 1)
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_warming_up_compiles_all_that_a_step_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    learner = learner_of(without_batch_norm(), compile=True, grad_accum_steps=2, channels_last=False)
    learner.warm_up(7, 32)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    learner.step(batch_of(7), 7, True, 1.0, 1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize(("max_shapes", "limit"), [(1, 8), (6, 16)])
def test_the_limit_of_compilations_is_never_lowered(max_shapes: int, limit: int) -> None:
    model = without_batch_norm()
    optimizer = create_optimizer("sgd", parameter_groups(model, 0.0), lr=0.1)
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        amp = resolve_amp("off", ALONE.device)
        options = StepOptions(compile=True)
        Learner(model, optimizer, ALONE, amp, LossOptions(), options, max_shapes=max_shapes)
        assert torch._dynamo.config.recompile_limit == limit
