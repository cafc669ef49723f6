"""The DALI graph: files, windows, size and flips are inputs of every batch, so one pipeline serves every plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from loaders.dali_geometry import Geometry

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

PACKAGE = "nvidia-dali-cuda130"

# Inputs of the graph besides the paths, fields of Geometry: numpy dtype and number of dimensions of one sample.
_INPUTS: dict[str, tuple[type[np.generic], int]] = {
    "anchor": (np.int32, 1),
    "shape": (np.int32, 1),
    "padded": (np.bool_, 0),
    "padded_anchor": (np.int32, 1),
    "padded_shape": (np.int32, 1),
    "region_start": (np.float32, 1),
    "region_end": (np.float32, 1),
    "size": (np.float32, 1),
    "transposed": (np.bool_, 0),
    "gains": (np.float32, 1),
}


def import_dali() -> Any:
    """Return the module nvidia.dali.

    Raises:
        ImportError: DALI is not installed; the message says how to install it.
    """
    try:
        import nvidia.dali
        import nvidia.dali.fn
        import nvidia.dali.types
    except ImportError as error:
        raise ImportError(
            f"the loader dali needs NVIDIA DALI, which runs on Linux: pip install 'headrace[dali]' (or {PACKAGE}); "
            "--loader torch works everywhere"
        ) from error
    return nvidia.dali


def input_names(device: torch.device, transposes: bool) -> tuple[str, ...]:
    """Return which inputs are needed, because each costs time: the fields of Geometry in order.

    Args:
        device: where the pipeline delivers to; on a CPU the gains are applied behind it.
        transposes: whether there are images to transpose.
    """
    needless = {"gains"} if device.type == "cpu" else set()
    return tuple(name for name in _INPUTS if name not in needless and (transposes or name != "transposed"))


def inputs_of(names: Sequence[str], paths: np.ndarray, geometry: Geometry) -> list[np.ndarray]:
    """Return one batch of the graph's inputs: the paths, uint8 (n, bytes), and the fields named."""
    return [paths, *(getattr(geometry, name) for name in names)]


def build_pipeline(
    source: Callable[[], list[np.ndarray]],
    names: Sequence[str],
    max_batch_size: int,
    num_threads: int,
    device: torch.device,
    prefetch: int,
) -> Pipeline:
    """Build the pipeline.

    Its outputs are the images (uint8 HWC, on the device; lines at an image's edge still without their gain) and, on a
    GPU, the gains (float32 (4,)).

    Args:
        source: returns the inputs of the next batch, or raises StopIteration.
        names: which inputs it returns.
        prefetch: batches in flight.
    """
    dali = import_dali()
    fn, types = dali.fn, dali.types
    on_gpu = device.type == "cuda"
    device_id = None
    if on_gpu:
        device_id = device.index if device.index is not None else torch.cuda.current_device()

    @dali.pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
    def graph() -> tuple[Any, ...]:
        path, *columns = fn.external_source(
            source=source,
            num_outputs=1 + len(names),
            batch=True,
            dtype=[types.UINT8, *(types.to_dali_type(np.dtype(_INPUTS[name][0]).name) for name in names)],
            ndim=[1, *(_INPUTS[name][1] for name in names)],
        )
        given = dict(zip(names, columns))  # noqa: B905 - DALI's tracing has no strict zip
        # Not mapped into memory: page faults cost more than the copy, and a file cut short meanwhile could end us.
        encoded = fn.io.file.read(path, dont_use_mmap=True)
        images = fn.decoders.image_slice(
            encoded,
            given["anchor"],
            given["shape"],
            axes=[0, 1],
            normalized_anchor=False,
            normalized_shape=False,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,  # done below: the stored orientation alone decides
            jpeg_fancy_upsampling=True,  # as libjpeg does on the CPU
        )
        if given["padded"]:
            images = fn.slice(
                images,
                given["padded_anchor"],
                given["padded_shape"],
                axes=[0, 1],
                normalized_anchor=False,
                normalized_shape=False,
                out_of_bounds_policy="pad",
            )
        images = fn.resize(
            images,
            size=given["size"],
            roi_start=given["region_start"],
            roi_end=given["region_end"],
            roi_relative=False,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        if given.get("transposed", False):
            images = fn.transpose(images, perm=[1, 0, 2], transpose_layout=False)
        return (images, given["gains"].gpu()) if on_gpu else (images,)

    pipeline = graph(
        batch_size=max_batch_size,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
        exec_dynamic=True,  # outputs stay valid as long as they are referred to
    )
    pipeline.build()
    return pipeline
