"""What is installed and usable, and what the machine can do."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
import torch

from kernels.jpeg import JpegLibraryError, load_library
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset
from loaders.packed import PackedDataset
from loaders.pixels import pillow_version

_READ_AT_ONCE = 1 << 20
_MOST_BYTES_READ = 256 << 20
_SHARE_FROM_DISK = 0.5  # of the bytes read, above which the disk was measured and not the memory
_MANY = 20  # functions; by chance a file of some megabytes holds none or one such sequence
_MEMORY_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of control groups, versions 2 and 1


@dataclass(frozen=True)
class Component:
    """Something that may be installed.

    Attributes:
        name: what it is called.
        version: as far as it can be told; empty where it is missing.
        usable: whether it can be used here.
        note: what else there is to know, or how to get it.
    """

    name: str
    version: str
    usable: bool
    note: str = ""


def components() -> list[Component]:
    """Return what the loaders and the training loop can make use of."""
    return [
        Component("PyTorch", torch.__version__, True),
        _cuda(),
        _dali(),
        _ffcv(),
        _turbojpeg(),
        _pillow(),
        _package("Numba", "numba", "pip install numba"),
        _nvml(),
        _package("Triton", "triton", "pip install triton (PyTorch for CUDA brings it)"),
    ]


def _version(*packages: str) -> str:
    """Return the version of the first of some packages that is installed; empty if none is."""
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return ""


def _package(name: str, package: str, remedy: str) -> Component:
    version = _version(package)
    usable = bool(version) and importlib.util.find_spec(package) is not None
    return Component(name, version, usable, "" if usable else remedy)


def _cuda() -> Component:
    version = torch.version.cuda or ""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Component("CUDA", version, True, ", ".join(names))
    if not version:
        return Component("CUDA", "", False, "this PyTorch is built for CPUs: pip install torch for CUDA, given a GPU")
    return Component("CUDA", version, False, "no GPU is visible: it takes an NVIDIA GPU and its driver (nvidia-smi)")


def _dali() -> Component:
    version = _version("nvidia-dali-cuda130", "nvidia-dali-cuda120")
    return Component("DALI", version, bool(version), "" if version else "pip install 'headrace[dali]'")


def _ffcv() -> Component:
    """Say whether FFCV can be used: its compiled part has to find the libraries that it was built with."""
    version = _version("ffcv")
    remedy = "apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev && pip install 'headrace[ffcv]'"
    if not version:
        return Component("FFCV", "", False, remedy)
    compiled = [file for file in metadata.files("ffcv") or [] if "libffcv" in file.name and file.suffix == ".so"]
    try:
        for file in compiled:
            ctypes.CDLL(str(file.locate()))
    except OSError as error:
        return Component("FFCV", version, False, f"{error}: {remedy}")
    return Component("FFCV", version, True)


def _turbojpeg() -> Component:
    try:
        name = load_library()
    except JpegLibraryError:
        return Component("libjpeg-turbo", "", False, "apt-get install libturbojpeg0")
    version = "3" if hasattr(ctypes.CDLL(name), "tj3Init") else "2"
    return Component("libjpeg-turbo", version, True, name)


def _pillow() -> Component:
    name, version = pillow_version().split(" ", 1)
    if name != "pillow-simd":
        return Component(
            name, version, True, "pillow-simd resizes faster: make test-simd builds an environment with it"
        )
    from PIL import _imaging  # type: ignore[attr-defined]

    with_avx2 = _uses_ymm_registers(Path(_imaging.__file__).read_bytes())
    note = "with AVX2" if with_avx2 else "without AVX2; make test-simd builds it for AVX2"
    return Component(name, version, True, note)


def _uses_ymm_registers(code: bytes) -> bool:
    """Say whether compiled code holds many vector instructions of 256 bits.

    These begin with C5 or C4 (a VEX prefix), whose last byte has a bit for the length; ``vzeroupper`` (C5 F8 77) ends
    every function that uses them, and compilers write it for nothing else (Intel 64 and IA-32 Architectures Software
    Developer's Manual, volume 2).
    """
    return code.count(b"\xc5\xf8\x77") > _MANY


def _nvml() -> Component:
    version = _version("nvidia-ml-py")
    if not version:
        return Component("NVML", "", False, "pip install nvidia-ml-py")
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            driver = str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except Exception as error:  # any NVMLError; without a driver there is no library
        return Component("NVML", version, False, f"{error}: it comes with the NVIDIA driver")
    return Component("NVML", version, True, f"driver {driver}")


@dataclass(frozen=True)
class Capacity:
    """What there is of each resource.

    Attributes:
        cores: processor cores that this process may use.
        memory: bytes in all that it may use.
        available: bytes of it that are free, or can be freed.
        shared_memory: free bytes of /dev/shm, through which worker processes hand over batches; None without one.
        device: what trains.
        bus: bytes per second copied to a GPU from page-locked memory; infinite without a GPU.
    """

    cores: float
    memory: int
    available: int
    shared_memory: int | None
    device: str
    bus: float


def capacity(device: torch.device) -> Capacity:
    """Look at the machine."""
    memory = psutil.virtual_memory()
    limit = min(memory.total, _memory_limit())
    shared = Path("/dev/shm")
    return Capacity(
        cores=usable_cores(),
        memory=limit,
        available=min(memory.available, limit),
        shared_memory=shutil.disk_usage(shared).free if shared.is_dir() else None,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        bus=_bus_rate(device) if device.type == "cuda" else math.inf,
    )


def _memory_limit(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that the control group allows; more than there is where it sets no limit."""
    for name in _MEMORY_LIMITS:
        with suppress(OSError, ValueError):
            return int((root / name).read_text())
    return 1 << 62


def _bus_rate(device: torch.device, size: int = 64 << 20, repetitions: int = 8) -> float:
    """Return bytes per second from page-locked memory to a CUDA device."""
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(size, dtype=torch.uint8, device=device)
    there.copy_(host, non_blocking=True)
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(repetitions):
        there.copy_(host, non_blocking=True)
    torch.cuda.synchronize(device)
    return size * repetitions / (time.perf_counter() - begin)


@dataclass(frozen=True)
class DiskRate:
    """How fast the files of a set could be read.

    Attributes:
        bytes_per_second: over all threads that read.
        source: where the bytes came from; unknown where the system does not tell, as on network file systems.
        bytes_read: how many were read.
    """

    bytes_per_second: float
    source: Literal["disk", "memory", "unknown"]
    bytes_read: int


def disk_rate(dataset: ImageDataset, seconds: float, threads: int = 8, seed: int = 0) -> DiskRate | None:
    """Read some of a set's own files, at random, and say how fast that was.

    Each file is first dropped from the page cache (``posix_fadvise``), which the system may decline; its own count of
    what the storage delivered (``/proc/self/io``) says whether it did.

    Args:
        dataset: whose files to read; of a packed set, its shards.
        seconds: to read for at most.
        threads: that read at the same time, as a loader's workers do.
        seed: of the choice.

    Returns:
        None if nothing could be read.
    """
    places = _places(dataset, seed)
    deadline = time.perf_counter() + seconds
    before, begin = storage_bytes(), time.perf_counter()
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as executor:
        parts = [executor.submit(_read_until, places[i::threads], deadline, threads) for i in range(threads)]
        total = sum(part.result() for part in parts)
    elapsed, after = time.perf_counter() - begin, storage_bytes()
    if not total:
        return None
    source: Literal["disk", "memory", "unknown"] = "unknown"
    if before is not None and after is not None:
        source = "disk" if after - before >= _SHARE_FROM_DISK * total else "memory"
    return DiskRate(total / elapsed, source, total)


def _places(dataset: ImageDataset, seed: int) -> list[tuple[str, int, int]]:
    """Return path, offset and length of what to read, in random order."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(dataset, PackedDataset):
        pieces = [
            (str(dataset.shards.folder / file), offset, _READ_AT_ONCE)
            for file, mapped in zip(dataset.shards.files, dataset.shards.maps, strict=True)
            for offset in range(0, len(mapped), _READ_AT_ONCE)
        ]
        return [pieces[i] for i in torch.randperm(len(pieces), generator=generator).tolist()]
    order = torch.randperm(len(dataset), generator=generator)[:20_000].tolist()
    return [(dataset.paths[i], 0, int(dataset.sizes[i])) for i in order]


def _read_until(places: Sequence[tuple[str, int, int]], deadline: float, threads: int) -> int:
    """Read one place after the other until it is time; return the bytes read."""
    total = 0
    for path, offset, length in places:
        if time.perf_counter() >= deadline or total >= _MOST_BYTES_READ // threads:
            break
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file, offset, length, os.POSIX_FADV_DONTNEED)
                total += len(os.pread(file, length, offset))
            finally:
                os.close(file)
    return total


def storage_bytes() -> int | None:
    """Return how many bytes this process has had from the storage so far, beneath the page cache."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/io").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "read_bytes":
                return int(value)
    return None
