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

# The inputs of the graph in order: numpy dtype and number of dimensions of one sample.
_INPUTS: tuple[tuple[type[np.generic], int], ...] = (
    (np.uint8, 1),  # path
    (np.int32, 1),  # anchor
    (np.int32, 1),  # shape
    (np.bool_, 0),  # padded
    (np.int32, 1),  # padded anchor
    (np.int32, 1),  # padded shape
    (np.float32, 1),  # region start
    (np.float32, 1),  # region end
    (np.float32, 1),  # size
    (np.bool_, 0),  # transposed
    (np.int32, 0),  # mirrored vertically
    (np.int32, 0),  # mirrored horizontally
    (np.float32, 1),  # gains
)


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


def inputs_of(paths: Sequence[np.ndarray], geometry: Geometry) -> list[Any]:
    """Return one batch of the graph's inputs; a path is its bytes as uint8."""
    return [
        paths,
        geometry.anchor,
        geometry.shape,
        geometry.padded,
        geometry.padded_anchor,
        geometry.padded_shape,
        geometry.region_start,
        geometry.region_end,
        geometry.size,
        geometry.transposed,
        geometry.mirrored_vertically,
        geometry.mirrored_horizontally,
        geometry.gains,
    ]


def build_pipeline(
    source: Callable[[], list[Any]], max_batch_size: int, num_threads: int, device: torch.device, prefetch: int
) -> Pipeline:
    """Build the pipeline.

    Its outputs are the images (uint8 HWC, on the device; lines at an image's edge still without their gain) and the
    gains (float32 (4,), on the device).

    Args:
        source: returns the inputs of the next batch, or raises StopIteration.
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
        (
            path,
            anchor,
            shape,
            padded,
            padded_anchor,
            padded_shape,
            region_start,
            region_end,
            size,
            transposed,
            mirrored_vertically,
            mirrored_horizontally,
            gains,
        ) = fn.external_source(
            source=source,
            num_outputs=len(_INPUTS),
            batch=True,
            dtype=[types.to_dali_type(np.dtype(dtype).name) for dtype, _ in _INPUTS],
            ndim=[ndim for _, ndim in _INPUTS],
        )
        encoded = fn.io.file.read(path)
        images = fn.decoders.image_slice(
            encoded,
            anchor,
            shape,
            axes=[0, 1],
            normalized_anchor=False,
            normalized_shape=False,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,  # done below: the stored orientation alone decides
            jpeg_fancy_upsampling=True,  # as libjpeg does on the CPU
        )
        if padded:
            images = fn.slice(
                images,
                padded_anchor,
                padded_shape,
                axes=[0, 1],
                normalized_anchor=False,
                normalized_shape=False,
                out_of_bounds_policy="pad",
            )
        images = fn.resize(
            images,
            size=size,
            roi_start=region_start,
            roi_end=region_end,
            roi_relative=False,
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        if transposed:
            images = fn.transpose(images, perm=[1, 0, 2], transpose_layout=False)
        images = fn.flip(images, vertical=mirrored_vertically, horizontal=mirrored_horizontally)
        return images, gains.gpu() if on_gpu else gains

    pipeline = graph(
        batch_size=max_batch_size,
        num_threads=num_threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
        exec_dynamic=True,  # outputs stay valid as long as they are referred to
    )
    pipeline.build()
    return pipeline
