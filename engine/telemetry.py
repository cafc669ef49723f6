"""What a run costs the machine: GPU utilization, memory, power and energy; processor time; and what the machine is."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import torch

from loaders.cores import usable_cores
from loaders.pixels import pillow_version

logger = logging.getLogger("headrace")

_GIB = 2**30
_PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "numba", "safetensors", "nvidia-dali-cuda130", "nvidia-dali-cuda120",
)  # fmt: skip


def cpu_seconds() -> float:
    """Return the processor time used so far by this process and all its descendants, those that ended included."""
    process = psutil.Process()
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):  # it ended in between: its parent counts it from now on
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def idle_seconds() -> float:
    """Return how long the cores open to this process have had nothing to do so far, added up over the cores.

    Waiting for a disk is nothing to do.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return sum(
        times.idle + getattr(times, "iowait", 0.0)
        for core, times in enumerate(psutil.cpu_times(percpu=True))
        if allowed is None or core in allowed
    )


@dataclass(frozen=True)
class _LoadingTime:
    """Processor time, and time waited for a core, in seconds."""

    cpu: float
    queued: float


def _knows_queues() -> bool:
    """Say whether this system counts how long threads wait for a core."""
    with suppress(OSError, IndexError):
        return Path("/proc/self/schedstat").read_text().split()[0] != "0"  # all are 0 in a kernel that does not count
    return False


def _queued_seconds(pid: int, but: frozenset[int] = frozenset()) -> float:
    """Return how long the threads of a process, but for some, were ready to run while no core was free.

    It is the second number of ``/proc/PID/task/*/schedstat`` (Documentation/scheduler/sched-stats.rst of Linux).
    """
    total = 0
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError, IndexError):
                if int(task.name) not in but:
                    total += int((task / "schedstat").read_text().split()[1])
    return total / 1e9


def resident_memory_gib() -> float:
    """Return the memory of this process and all its descendants; what several share counts once where Linux tells."""
    process = psutil.Process()
    total = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            full = one.memory_full_info()
            total += getattr(full, "pss", full.rss)
    return total / _GIB


class Gpu:
    """Watches one GPU through NVML: a light thread samples it, energy is read from the driver's counter.

    Args:
        device: a CUDA device.
        interval: seconds between samples.

    Raises:
        OSError: NVML is not installed or does not know the device.
    """

    def __init__(self, device: torch.device, interval: float = 0.5) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as error:  # ImportError, or any NVMLError
            raise OSError(f"NVML cannot be used: {error}") from error
        self._nvml = pynvml
        self._interval = interval
        try:
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        except Exception as error:
            pynvml.nvmlShutdown()
            raise OSError(f"NVML does not know {device}: {error}") from error
        self._lock = threading.Lock()
        self._reset()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="headrace-nvml", daemon=True)
        self._thread.start()

    def _reset(self) -> None:
        self._utilization: list[float] = []
        self._power: list[tuple[float, float]] = []  # (time in s, W)
        self._memory = 0.0
        self._energy = self._energy_counter()

    def _energy_counter(self) -> float | None:
        """Joules since the driver was loaded; None before Volta."""
        with suppress(self._nvml.NVMLError):
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000
        return None

    def _sample(self) -> None:
        while not self._stopped.is_set():
            with self._lock:
                with suppress(self._nvml.NVMLError):
                    self._utilization.append(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
                with suppress(self._nvml.NVMLError):
                    watts = self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000
                    self._power.append((time.monotonic(), watts))
                with suppress(self._nvml.NVMLError):
                    self._memory = max(self._memory, self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used / _GIB)
            self._stopped.wait(self._interval)

    def collect(self) -> dict[str, float]:
        """Return what was seen since the last call, for a metrics record; what the GPU does not tell is left out.

        ``gpu_utilization`` in percent and ``power_w`` are means, ``gpu_memory_gib`` the maximum on the whole GPU.
        """
        with self._lock:
            record = {}
            if self._utilization:
                record["gpu_utilization"] = sum(self._utilization) / len(self._utilization)
            if self._memory:
                record["gpu_memory_gib"] = self._memory
            if self._power:
                record["power_w"] = sum(watts for _, watts in self._power) / len(self._power)
            joules = self._joules()
            if joules is not None:
                record["joules"] = joules
            self._reset()
        return record

    def _joules(self) -> float | None:
        now = self._energy_counter()
        if now is not None and self._energy is not None:
            return now - self._energy
        return integrate_power(self._power)

    def close(self) -> None:
        if not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()


def integrate_power(samples: list[tuple[float, float]]) -> float | None:
    """Return joules from samples of (time in seconds, watts) by the trapezoidal rule; None from fewer than two."""
    if len(samples) < 2:
        return None
    return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairwise(samples))


class Telemetry:
    """Watches the machine over a run, an epoch at a time.

    Without a GPU, or without NVML, the GPU's fields are absent, not zero.

    Args:
        device: that trains.
        local_world: processes of the job on this machine, which share its cores.
    """

    def __init__(self, device: torch.device, local_world: int = 1) -> None:
        self._gpu: Gpu | None = None
        if device.type == "cuda":
            try:
                self._gpu = Gpu(device)
            except OSError as error:
                logger.info("No GPU telemetry: %s", error)
        self._local_world = local_world
        self._not_loading: frozenset[int] | None = None  # threads
        self._mark()

    def _mark(self) -> None:
        self._began = time.monotonic()
        self._cpu_seconds, self._idle_seconds = cpu_seconds(), idle_seconds()
        self._loading = self._loading_time()

    def start(self) -> None:
        """Begin an epoch: forget what was seen before.

        A loader starts its threads when its first epoch begins, so that those of the first call are not a loader's.
        """
        if self._not_loading is None:
            self._not_loading = frozenset(thread.id for thread in psutil.Process().threads())
        self._mark()
        if self._gpu:
            self._gpu.collect()

    def forget_processor_time(self) -> None:
        """Begin anew to watch the processor: threads that end with their workers take their times with them.

        What the GPU does in the epoch is one whole.
        """
        self._mark()

    def _loading_time(self) -> _LoadingTime:
        """Return the time used so far by the loader's threads and by all descendants of this process."""
        process, known = psutil.Process(), self._not_loading or frozenset()
        times = process.cpu_times()
        cpu = times.children_user + times.children_system
        cpu += sum(one.user_time + one.system_time for one in process.threads() if one.id not in known)
        queued = _queued_seconds(process.pid, known)
        for child in process.children(recursive=True):
            with suppress(psutil.Error):
                times = child.cpu_times()
                cpu += times.user + times.system + times.children_user + times.children_system
                queued += _queued_seconds(child.pid)
        return _LoadingTime(cpu, queued)

    def collect(self, images: int) -> dict[str, float]:
        """Return the fields of an epoch record, over the time since ``start``.

        Args:
            images: how many images this process and its workers handled since ``start``, or since
                ``forget_processor_time``.

        Returns:
            ``cpu_ms_per_image``: processor time of this process and its descendants for each image, milliseconds;
            ``loading_cpu_ms_per_image``: what of it the loader's threads and processes used;
            ``loading_queued_ms_per_image``: how long these waited for a core to become free, where Linux tells;
            ``idle_cores``: of this process's share of the machine, how many cores had nothing to do, on average;
            ``memory_gib``: their memory now; and with a GPU what ``Gpu.collect`` returns.
        """
        record = {"memory_gib": resident_memory_gib()}
        elapsed, spent = time.monotonic() - self._began, cpu_seconds() - self._cpu_seconds
        if images:
            record["cpu_ms_per_image"] = 1000 * spent / images
            loading = self._loading_time()
            record["loading_cpu_ms_per_image"] = 1000 * max(0.0, loading.cpu - self._loading.cpu) / images
            if _knows_queues():
                record["loading_queued_ms_per_image"] = 1000 * max(0.0, loading.queued - self._loading.queued) / images
        if elapsed > 0:
            idle = (idle_seconds() - self._idle_seconds) / self._local_world
            quota = usable_cores(self._local_world) - spent / elapsed  # of a control group, below the machine's cores
            record["idle_cores"] = max(0.0, min(idle / elapsed, quota))
        if self._gpu:
            record |= self._gpu.collect()
        return record

    def close(self) -> None:
        if self._gpu:
            self._gpu.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def environment() -> dict[str, Any]:
    """Return what a run should say about where it ran, for ``env.json``: only what is known, in plain types."""
    record: dict[str, Any] = {
        "argv": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "packages": {"pillow": pillow_version(), **_package_versions()},
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / _GIB, 1),
        "git_commit": _git_commit(),
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),
    }
    if torch.cuda.is_available():
        record["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        record["cuda"] = torch.version.cuda
        record["cudnn"] = torch.backends.cudnn.version()
        record["driver"] = _driver_version()
    return {key: value for key, value in record.items() if value is not None}


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _cpu_model() -> str | None:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or None


def _git_commit() -> str | None:
    """The commit of the working directory, marked when files were changed since."""
    try:

        def git(*arguments: str) -> str:
            return subprocess.run(
                ["git", *arguments], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()

        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _driver_version() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # NVML is optional, and so is this line of the report
        return None
