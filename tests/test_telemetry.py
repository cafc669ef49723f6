from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from engine.telemetry import (
    Gpu,
    Telemetry,
    cpu_seconds,
    environment,
    idle_seconds,
    integrate_power,
    resident_memory_gib,
)
from loaders.cores import usable_cores


class FakeNvmlError(Exception):
    pass


def fake_nvml(has_energy_counter: bool) -> ModuleType:
    """A GPU at 200 W, 80 % busy, 10 GiB full, whose energy counter rises by 50 J a reading."""
    module = ModuleType("pynvml")
    energy = {"mJ": 0}

    def total_energy(handle: object) -> int:
        if not has_energy_counter:
            raise FakeNvmlError("not supported")
        energy["mJ"] += 50_000
        return energy["mJ"]

    module.__dict__.update(
        NVMLError=FakeNvmlError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=total_energy,
        nvmlDeviceGetPowerUsage=lambda handle: 200_000,
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=80),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=10 * 2**30),
    )
    return module


@pytest.fixture
def cuda_properties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))


@pytest.mark.usefixtures("cuda_properties")
def test_a_gpu_is_sampled_and_its_energy_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(has_energy_counter=True))
    with Telemetry(torch.device("cuda")) as telemetry:
        telemetry.start()
        time.sleep(1.2)
        record = telemetry.collect(images=100)
    assert (record["gpu_utilization"], record["gpu_memory_gib"], record["power_w"]) == (80.0, 10.0, 200.0)
    assert record["joules"] == 50.0


@pytest.mark.usefixtures("cuda_properties")
def test_without_an_energy_counter_power_is_integrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(has_energy_counter=False))
    gpu = Gpu(torch.device("cuda"), interval=0.02)
    gpu.collect()
    begin = time.monotonic()
    time.sleep(0.4)
    joules = gpu.collect()["joules"]
    assert 0 < joules <= 200 * (time.monotonic() - begin)
    gpu.close()
    gpu.close()


@pytest.mark.usefixtures("cuda_properties")
def test_without_nvml_the_fields_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Telemetry(torch.device("cuda")) as telemetry:
        telemetry.start()
        assert not [name for name in telemetry.collect(images=1) if name.startswith(("gpu", "power", "joules"))]


def test_power_is_integrated_by_trapezoids() -> None:
    assert integrate_power([(0.0, 100.0), (2.0, 200.0), (3.0, 200.0)]) == 500.0
    assert integrate_power([(0.0, 100.0)]) is None


_BURN = "import time\nwhile time.process_time() < 0.4: pass"


def _burn(seconds: float) -> None:
    while time.process_time() < seconds:
        pass


def test_processor_time_of_workers_counts_while_they_live_and_after() -> None:
    before = cpu_seconds()
    subprocess.run([sys.executable, "-c", _BURN], check=True)
    assert cpu_seconds() - before >= 0.35


def test_cost_of_an_image_and_memory() -> None:
    with Telemetry(torch.device("cpu")) as telemetry:
        telemetry.start()
        _burn(time.process_time() + 0.1)
        record = telemetry.collect(images=10)
    assert record["cpu_ms_per_image"] >= 10
    assert 0 < record["memory_gib"] < 1024
    assert resident_memory_gib() > 0


def test_loading_is_what_threads_and_processes_do_that_came_later() -> None:
    def work(stop: threading.Event) -> None:
        while not stop.wait(0):
            pass

    def millisecond_shares(of: Telemetry) -> tuple[float, float]:
        record = of.collect(images=1000)
        return record["cpu_ms_per_image"], record["loading_cpu_ms_per_image"]

    early, late = threading.Event(), threading.Event()
    trains = threading.Thread(target=work, args=(early,))
    trains.start()
    with Telemetry(torch.device("cpu")) as telemetry:
        telemetry.start()
        _burn(time.process_time() + 0.3)
        early.set()
        trains.join()
        spent, loading = millisecond_shares(telemetry)
        assert spent >= 0.3
        assert loading <= 0.05
        telemetry.start()
        loads = threading.Thread(target=work, args=(late,))
        loads.start()
        subprocess.run([sys.executable, "-c", _BURN], check=True)
        spent, loading = millisecond_shares(telemetry)
        late.set()
        loads.join()
    assert loading >= 0.35
    assert spent >= loading


def test_idle_cores_are_within_what_there_is() -> None:
    before = idle_seconds()
    with Telemetry(torch.device("cpu"), local_world=2) as telemetry:
        telemetry.start()
        time.sleep(0.2)
        record = telemetry.collect(images=0)
    assert 0 <= record["idle_cores"] <= usable_cores(2)
    assert idle_seconds() >= before
    assert "cpu_ms_per_image" not in record


def test_the_environment_is_plain_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--epochs", "3"])
    record = json.loads(json.dumps(environment()))
    assert record["argv"] == ["train", "--epochs", "3"]
    assert record["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["packages"]["pillow"].startswith(("Pillow", "pillow-simd"))
    assert record["usable_cores"] > 0
    assert None not in record.values()


def test_outside_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "git_commit" not in environment()
