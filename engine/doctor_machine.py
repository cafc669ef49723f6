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
from loaders.control_groups import memory_left, memory_limit
from loaders.cores import usable_cores
from loaders.dataset import ImageDataset
from loaders.packed import PackedDataset
from loaders.pixels import pillow_version

_READERS = (8, 64)  # threads that read together, after one alone
_LEAST_ALONE = 4  # places that the one reads, time or not
_IN_PROPORTION = 0.7  # of the rate of so many threads that do not disturb each other
_MOST_PLACES = 20_000
_MOST_BYTES_READ = 256 << 20  # by so many threads
_SHARE_FROM_DISK = 0.5  # of the bytes read, above which the disk was measured and not the memory
_SLOW_READ, _SLOW_RATE = 0.5e-3, 200e6  # seconds and bytes per second: some ten times slower than from memory
_MANY = 20  # functions; by chance a file of some megabytes holds none or one such sequence


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
    limit = int(min(memory.total, memory_limit()))
    shared = Path("/dev/shm")
    return Capacity(
        cores=usable_cores(),
        memory=limit,
        available=int(min(memory.available, memory_left())),
        shared_memory=shutil.disk_usage(shared).free if shared.is_dir() else None,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        bus=_bus_rate(device) if device.type == "cuda" else math.inf,
    )


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
        source: where the bytes came from; unknown where the system does not tell, as on some network file systems.
        bytes_read: how many were read.
        latency: seconds that one thread waits for a file besides, which does not keep others waiting.
    """

    bytes_per_second: float
    source: Literal["disk", "memory", "unknown"]
    bytes_read: int
    latency: float = 0.0


@dataclass(frozen=True)
class _Reading:
    """What some threads read together."""

    readers: int
    places: int
    size: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.size / self.seconds

    def is_slower_than_memory(self) -> bool:
        """Say whether one thread took far longer than the page cache takes."""
        return self.seconds > self.places * _SLOW_READ + self.size / _SLOW_RATE


def disk_rate(dataset: ImageDataset, seconds: float, seed: int = 0) -> DiskRate | None:
    """Read some of a set's own files, at random, and say how fast that was.

    One thread reads alone; then many read together, ever more as long as that is faster in proportion, which it is
    where each only waits. What they reach together is the rate; what the one waited beyond that is latency.

    Each file is first dropped from the page cache (``posix_fadvise``), which the system may decline; its own count of
    what the storage delivered (``/proc/self/io``) says whether it did. A file system may deliver without being counted
    (those in user space are not): what is slow then has not come from memory.

    Args:
        dataset: whose files to read; of a packed set, pieces of its shards as long as an image.
        seconds: to read for at most, apart from the least that each thread reads.
        seed: of the choice.

    Returns:
        None if nothing could be read.
    """
    places = _places(dataset, seed)
    before = storage_bytes()
    first = _read(places[:1], seconds, 1)  # takes longer than those that follow: folders are looked up
    share = max(1, len(places) // (1 + 2 * _READERS[0]))  # of each of the first that read together
    position = 1 + max(share, min(_LEAST_ALONE, len(places) // 3))
    alone = last = together = _read(places[1:position], seconds / (1 + len(_READERS)), 1, _LEAST_ALONE)
    total = first.size + alone.size
    for readers in _READERS:
        mine = places[position : position + max(readers, _READERS[0] * share)]
        if not mine or last.rate < _IN_PROPORTION * last.readers * alone.rate:  # they have met the disk's limit
            break
        last = _read(mine, seconds / (1 + len(_READERS)), min(readers, len(mine)))
        total, position = total + last.size, position + len(mine)
        together = max(together, last, key=lambda one: one.rate)
    after = storage_bytes()
    if not total:
        return None
    source: Literal["disk", "memory", "unknown"] = "unknown"
    if before is not None and after is not None:
        if after - before >= _SHARE_FROM_DISK * total:
            source = "disk"
        elif not alone.is_slower_than_memory():
            source = "memory"
    latency = (alone.seconds - alone.size / together.rate) / alone.places if alone.places else 0.0
    return DiskRate(together.rate, source, total, max(0.0, latency))


def _places(dataset: ImageDataset, seed: int) -> list[tuple[str, int, int]]:
    """Return path, offset and length of what to read, in random order."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(dataset, PackedDataset):
        length = max(1, int(dataset.sizes.mean()))
        pieces = [
            (str(dataset.shards.folder / file), offset, length)
            for file, mapped in zip(dataset.shards.files, dataset.shards.maps, strict=True)
            for offset in range(0, len(mapped), length)
        ]
        return [pieces[i] for i in torch.randperm(len(pieces), generator=generator)[:_MOST_PLACES].tolist()]
    order = torch.randperm(len(dataset), generator=generator)[:_MOST_PLACES].tolist()
    return [(dataset.paths[i], 0, int(dataset.sizes[i])) for i in order]


def _read(places: Sequence[tuple[str, int, int]], seconds: float, readers: int, least: int = 1) -> _Reading:
    """Have threads read places until it is time, each so many at least."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(readers, thread_name_prefix="read") as executor:
        parts = [
            executor.submit(_read_until, places[i::readers], begin + seconds, _MOST_BYTES_READ // readers, least)
            for i in range(readers)
        ]
        done = [part.result() for part in parts]
    elapsed = time.perf_counter() - begin
    return _Reading(readers, sum(count for count, _ in done), sum(size for _, size in done), elapsed)


def _read_until(
    places: Sequence[tuple[str, int, int]], deadline: float, most_bytes: int, least: int
) -> tuple[int, int]:
    """Read one place after the other until it is time; return how many were read, and their bytes."""
    count = total = 0
    for path, offset, length in places:
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file, offset, length, os.POSIX_FADV_DONTNEED)
                total += len(os.pread(file, length, offset))
                count += 1
            finally:
                os.close(file)
        if total >= most_bytes or (count >= least and time.perf_counter() >= deadline):
            break
    return count, total


def storage_bytes() -> int | None:
    """Return how many bytes this process has had from the storage so far, beneath the page cache."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/io").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "read_bytes":
                return int(value)
    return None
