"""What a process may use: cores of its mask, quotas and limits of its control groups."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from loaders import cores
from loaders.control_groups import cpu_quota, memory_left, memory_limit
from loaders.cores import usable_cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_quota_of_a_control_group_is_the_smallest_on_the_way_up(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    write(membership, "0::/system/job/step\n")
    write(root / "cpu.max", "max 100000\n")
    write(root / "system/job/cpu.max", "150000 100000\n")
    write(root / "system/job/step/cpu.max", "400000 100000\n")
    assert cpu_quota(membership, root) == 1.5


@pytest.mark.parametrize("mounted", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_the_quota_of_version_1_and_of_a_container_that_sees_only_its_root(tmp_path: Path, mounted: str) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    write(membership, "5:memory:/x\n4:cpu,cpuacct:/docker/abc\n")
    write(root / mounted / "cpu.cfs_quota_us", "250000\n")
    write(root / mounted / "cpu.cfs_period_us", "100000\n")
    assert cpu_quota(membership, root) == 2.5
    write(root / mounted / "cpu.cfs_quota_us", "-1\n")
    assert math.isinf(cpu_quota(membership, root))
    assert math.isinf(cpu_quota(tmp_path / "missing", root))


def test_memory_of_nested_control_groups(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    write(membership, "0::/system/job\n")
    assert math.isinf(memory_limit(membership, root))
    assert math.isinf(memory_left(membership, root))
    write(root / "system/job/memory.max", "max\n")
    write(root / "system/job/memory.current", "900\n")
    assert math.isinf(memory_left(membership, root))
    write(root / "system/memory.max", "8000\n")
    assert memory_left(membership, root) == 8000
    write(root / "system/memory.current", "7000\n")
    write(root / "system/memory.stat", "anon 4000\ninactive_file 2500\n")
    assert memory_limit(membership, root) == 8000
    assert memory_left(membership, root) == 3500


def test_memory_of_version_1(tmp_path: Path) -> None:
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    write(membership, "5:memory:/x\n")
    write(root / "memory/x/memory.limit_in_bytes", "5000\n")
    write(root / "memory/x/memory.usage_in_bytes", "3000\n")
    write(root / "memory/x/memory.stat", "inactive_file 1\ntotal_inactive_file 1000\n")
    write(root / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert (memory_limit(membership, root), memory_left(membership, root)) == (5000, 3000)


def test_a_process_alone_has_all_cores() -> None:
    assert 0 < usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("own", "launcher", "quota", "ranks", "expected"),
    [
        pytest.param(8, 8, math.inf, 1, 8, id="alone"),
        pytest.param(8, 64, math.inf, 1, 8, id="alone, bound to some cores"),
        pytest.param(8, 8, math.inf, 4, 2, id="the cores are shared"),
        pytest.param(2, 8, math.inf, 4, 2, id="each is bound to its own"),
        pytest.param(4, 8, math.inf, 4, 2, id="two share a node's cores"),
        pytest.param(8, 0, math.inf, 4, 2, id="the launcher is gone"),
        pytest.param(8, 8, 3.0, 2, 1.5, id="a quota is shared"),
        pytest.param(1, 8, 3.0, 2, 1, id="bound, within a quota"),
    ],
)  # fmt: skip
def test_processes_of_a_machine_share_what_they_are_not_bound_to(
    own: int, launcher: int, quota: float, ranks: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "_mask", lambda process: launcher if process else own)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert usable_cores(ranks) == expected
