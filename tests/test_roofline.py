"""The operational roofline: the rate is that of the busiest resource, and workers are as many as it takes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.roofline import RESOURCES, Demand, Limit, Machine, Resource, limit_of, roofline, workers_needed

machines = st.builds(
    Machine, cores=st.floats(0.25, 256), disk=st.floats(1e5, 1e10), bus=st.floats(1e8, 1e11),
    disk_latency=st.one_of(st.just(0.0), st.floats(1e-5, 0.1)),
)  # fmt: skip
demands = st.builds(
    Demand,
    cpu_seconds=st.dictionaries(st.sampled_from(["read", "decode", "resize"]), st.floats(1e-6, 0.1)),
    disk_bytes=st.floats(0, 1e6),
    bus_bytes=st.floats(0, 1e6),
    step_seconds=st.floats(1e-6, 0.1),
    step_cpu_seconds=st.floats(0, 0.1),
    augment_seconds=st.floats(0, 0.1),
    augment_cpu_seconds=st.floats(0, 0.1),
)
TRAINING_FIELDS = ("step_seconds", "step_cpu_seconds", "augment_seconds", "augment_cpu_seconds")
workers = st.one_of(st.none(), st.integers(0, 300))


@given(machines, demands, workers)
def test_the_bound_is_the_lowest_ceiling(machine: Machine, demand: Demand, num_workers: int | None) -> None:
    result = roofline(machine, demand, num_workers)
    assert set(result.ceilings) == set(RESOURCES)
    assert result.rate == min(result.ceilings.values()) == pytest.approx(result.ceilings[result.bound])
    assert result.headroom[result.bound] == pytest.approx(1)
    assert all(value >= 1 for value in result.headroom.values())
    assert result.ceilings[result.next_bound] == pytest.approx(sorted(result.ceilings.values())[1])


@given(machines, demands, workers, st.floats(1, 10))
def test_more_of_anything_is_never_slower(
    machine: Machine, demand: Demand, num_workers: int | None, factor: float
) -> None:
    rate = roofline(machine, demand, num_workers).rate
    for name in ("cores", "disk", "bus"):
        larger = replace(machine, **{name: factor * getattr(machine, name)})
        assert roofline(larger, demand, num_workers).rate >= rate
    for name in ("disk_bytes", "bus_bytes", *TRAINING_FIELDS):
        heavier = replace(demand, **{name: factor * getattr(demand, name)})
        assert roofline(machine, heavier, num_workers).rate <= rate
    added = replace(demand, cpu_seconds={**demand.cpu_seconds, "jitter": factor * 1e-3})
    assert roofline(machine, added, num_workers).rate <= rate
    if num_workers is not None:
        assert roofline(machine, demand, num_workers + 1).rate >= rate


@given(machines, demands)
def test_workers_are_enough_and_no_more_than_needed(machine: Machine, demand: Demand) -> None:
    count = workers_needed(machine, demand)
    most = max(1, math.floor(machine.cores))
    assert 1 <= count <= most
    reached = roofline(machine, demand, count)
    if count < most:
        assert reached.rate >= roofline(machine, demand).rate * (1 - 1e-6)
    assert reached.bound != "workers" or count == most  # where cores limit their number, the rate says so
    if count > 1:
        assert roofline(machine, demand, count - 1).bound == "workers"


@given(machines, demands, st.integers(1, 8))
def test_ranks_divide_a_machine(machine: Machine, demand: Demand, ranks: int) -> None:
    part = machine.shared_by(ranks)
    assert part.cores * ranks == pytest.approx(machine.cores)
    assert ranks * workers_needed(part, demand) <= max(ranks, machine.cores * (1 + 1e-9))
    whole, each = roofline(machine, demand).ceilings, roofline(part, demand).ceilings
    resources: tuple[Resource, ...] = ("cores", "disk")
    assert all(ranks * each[name] == pytest.approx(whole[name]) for name in resources)
    assert each["bus"] == whole["bus"]


LOADING = {"decode": 1.6e-3, "resize": 0.4e-3}


@pytest.mark.parametrize(
    ("machine", "demand", "num_workers", "limit", "rate"),
    [
        pytest.param(Machine(8, disk=50e6), Demand(LOADING, disk_bytes=100e3), 8, "disk", 500, id="slow disk"),
        pytest.param(
            Machine(8), Demand(LOADING, step_seconds=1e-3, augment_seconds=4e-3, augment_cpu_seconds=9e-3), None,
            "augmentation", 200, id="heavy augmentation",
        ),
        pytest.param(
            Machine(4), Demand(LOADING, step_cpu_seconds=2e-3, step_seconds=1e-3, augment_seconds=2e-3,
                               augment_cpu_seconds=8e-3), None, "augmentation", 1000 / 3, id="augmentation, few cores",
        ),
        pytest.param(
            Machine(8), Demand(LOADING, step_seconds=8e-3, augment_seconds=2e-3), None, "model", 100,
            id="augmentation hardly counts",
        ),
        pytest.param(Machine(4), Demand({**LOADING, "blur": 6e-3}), 4, "cores", 500, id="heavy loading"),
        pytest.param(Machine(8), Demand(LOADING, step_seconds=10e-3), 8, "model", 100, id="slow model"),
        pytest.param(Machine(8), Demand(LOADING, step_seconds=0.5e-3), 2, "workers", 1000, id="too few workers"),
        pytest.param(Machine(8), Demand(LOADING, step_seconds=3e-3), 0, "workers", 200, id="no workers"),
        pytest.param(
            Machine(8, disk=50e6), Demand(LOADING, disk_bytes=100e3), 1, "workers", 250, id="one worker on a slow disk"
        ),
        pytest.param(
            Machine(8, disk=50e6, disk_latency=6e-3), Demand(LOADING, disk_bytes=100e3), 2, "workers", 200,
            id="two workers waiting for a disk",
        ),
        pytest.param(
            Machine(8, disk=50e6, disk_latency=6e-3), Demand(LOADING, disk_bytes=100e3), 8, "disk", 500,
            id="eight workers waiting for a disk",
        ),
        pytest.param(Machine(8, bus=60e6), Demand(LOADING, bus_bytes=150e3), None, "bus", 400, id="slow bus"),
        pytest.param(Machine(2), Demand(LOADING, step_cpu_seconds=3e-3), None, "model", 400, id="shared cores"),
        pytest.param(Machine(2), Demand(LOADING, step_cpu_seconds=1e-3), None, "cores", 2000 / 3, id="loading's cores"),
    ],
)  # fmt: skip
def test_constructed_cases(
    machine: Machine, demand: Demand, num_workers: int | None, limit: Limit, rate: float
) -> None:
    result = roofline(machine, demand, num_workers)
    assert result.rate == pytest.approx(rate)
    assert limit_of(demand, result.bound) == limit


@given(machines, demands, workers)
def test_a_limit_is_a_resource_or_who_uses_it(machine: Machine, demand: Demand, num_workers: int | None) -> None:
    bound = roofline(machine, demand, num_workers).bound
    limit = limit_of(demand, bound)
    if bound == "training":
        assert limit in ("augmentation", "model")
    else:
        assert limit == bound or (bound == "cores" and limit in ("augmentation", "model"))


@pytest.mark.parametrize(
    ("machine", "demand", "expected"),
    [
        pytest.param(Machine(8), Demand(LOADING, step_seconds=1e-3), 2, id="two keep up with the model"),
        pytest.param(Machine(8), Demand(LOADING, step_seconds=10e-3), 1, id="a slow model needs one"),
        pytest.param(Machine(8), Demand(LOADING, step_seconds=1e-5), 8, id="a fast model takes all cores"),
        pytest.param(Machine(2), Demand(LOADING, step_cpu_seconds=2e-3), 1, id="the model takes half the cores"),
        pytest.param(Machine(0.5), Demand(LOADING), 1, id="half a core"),
        pytest.param(Machine(16, disk=50e6), Demand(LOADING, disk_bytes=100e3), 2, id="waiting for a slow disk"),
        pytest.param(
            Machine(16, disk=50e6, disk_latency=16e-3),
            Demand(LOADING, disk_bytes=100e3),
            10,
            id="waiting for a far disk",
        ),
        pytest.param(Machine(16), Demand(), 1, id="nothing to do"),
    ],
)
def test_workers_needed(machine: Machine, demand: Demand, expected: int) -> None:
    assert workers_needed(machine, demand) == expected


def simulated_rate(machine: Machine, demand: Demand, num_workers: int, images: int = 4000) -> float:
    """Follow images one by one: a worker reads each (one at a time from the disk), then decodes it on a core of its
    own choice, then the model trains on it.
    """
    free_workers, free_cores = [0.0] * num_workers, [0.0] * math.floor(machine.cores)
    disk = model = 0.0
    for _ in range(images):
        worker = min(range(num_workers), key=free_workers.__getitem__)
        disk = max(disk, free_workers[worker]) + demand.disk_bytes / machine.disk
        core = min(range(len(free_cores)), key=free_cores.__getitem__)
        decoded = max(disk + machine.disk_latency, free_cores[core]) + demand.loading_cpu_seconds
        free_workers[worker] = free_cores[core] = decoded
        model = max(model, decoded) + demand.step_seconds
    return images / model


SIMULATED = [
    pytest.param(Machine(8, disk=50e6), Demand(LOADING, disk_bytes=100e3), 8, id="slow disk"),
    pytest.param(Machine(4), Demand({**LOADING, "blur": 6e-3}, step_seconds=1e-3), 4, id="heavy augmentation"),
    pytest.param(Machine(8, disk=1e9), Demand(LOADING, disk_bytes=1e5, step_seconds=10e-3), 8, id="slow model"),
    pytest.param(Machine(8, disk=1e8), Demand(LOADING, disk_bytes=1e5, step_seconds=2e-4), 2, id="too few workers"),
    pytest.param(Machine(8, disk=1e9, disk_latency=9e-3), Demand(LOADING, disk_bytes=1e5), 8, id="far disk"),
]


@pytest.mark.parametrize(("machine", "demand", "num_workers"), SIMULATED)
def test_the_rate_is_that_of_a_simulation(machine: Machine, demand: Demand, num_workers: int) -> None:
    assert roofline(machine, demand, num_workers).rate == pytest.approx(
        simulated_rate(machine, demand, num_workers), rel=0.2
    )


@pytest.mark.parametrize(("machine", "demand"), [case.values[:2] for case in SIMULATED])
def test_workers_needed_reach_the_rate_in_a_simulation(machine: Machine, demand: Demand) -> None:
    most = math.floor(machine.cores)
    best = max(simulated_rate(machine, demand, count) for count in range(1, most + 1))
    assert simulated_rate(machine, demand, workers_needed(machine, demand)) >= 0.8 * best


def test_nothing_needed_is_no_limit() -> None:
    free = roofline(Machine(1), Demand())
    assert math.isinf(free.rate)
    assert set(free.headroom.values()) == {1.0}


@pytest.mark.parametrize("cores", [0.0, -1.0, math.nan])
def test_a_machine_without_cores_is_refused(cores: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Machine(cores)


@pytest.mark.parametrize("seconds", [-1e-3, math.nan, math.inf])
def test_an_impossible_demand_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Demand({"decode": seconds})
