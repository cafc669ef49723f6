"""The Triton kernel that gathers tiles, resamples them and makes RGB of them.

A program makes a block of pixels of one sample. It works in the orientation of the stored image, so that neighbors read
neighbors, and turns pixels on the way out. Places and weights are worked out along each axis; a tap is one byte read
for each pixel, most of them from the first cache, as neighbors' taps overlap. The numbers of taps follow from the
windows and the resolution is a plain argument: a kernel is compiled once for each layout of the result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.device_regions import JFIF, Regions

_ROWS, _COLUMNS = 16, 32  # pixels of a program


@triton.jit
def _triangle(distance: tl.tensor, slope: tl.tensor) -> tl.tensor:
    return tl.maximum(1 - tl.abs(distance) * slope, 0)


@triton.jit
def _weight(
    tap: tl.tensor,
    first: tl.tensor,
    distance: tl.tensor,
    slope: tl.tensor,
    size: tl.tensor,
    shared: tl.tensor,
    chroma: tl.constexpr,
) -> tl.tensor:
    """Return the weight of each output's tap, not normalized; 0 outside the image.

    A sample of chroma is shared by 1 pixel or by 2. Of two, each takes a quarter from the next sample on its side; at
    the ends of the axis, where there is none, from its own. ``distance`` is that of the first tap's first pixel.
    """
    sample, distance = first + tap, distance + shared * tap
    weight = _triangle(distance, slope)
    if chroma:
        before = _triangle(distance - tl.where(sample > 0, 1, 0), slope)
        behind = _triangle(distance + tl.where(sample < size - 1, 2, 1), slope)
        pair = 0.75 * (weight + _triangle(distance + 1, slope)) + 0.25 * (before + behind)
        weight = tl.where(shared == 2, pair, weight)
    return tl.where((sample >= 0) & (sample < size), weight, 0)


@triton.jit
def _resample_plane(
    samples: tl.tensor,
    positions: tl.tensor,
    plane: tl.tensor,
    window: tl.tensor,
    luma_window: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    resolution: tl.tensor,
    chroma: tl.constexpr,
) -> tl.tensor:
    """Return one component at some rows and columns of the output, float32; 128 where the component is missing."""
    samples += tl.load(plane)
    stride = tl.load(plane + 1).to(tl.int32)
    block_width = tl.maximum(tl.load(plane + 2).to(tl.int32), 1)  # 0 where the component is missing
    block_height = tl.maximum(tl.load(plane + 3).to(tl.int32), 1)
    per_strip = tl.maximum(tl.load(plane + 4).to(tl.int32), 1)
    positions += tl.load(plane + 5)
    width = tl.load(plane + 6).to(tl.int32)
    height = tl.load(plane + 7).to(tl.int32)

    # Where a filter begins is found in float64: far from the origin, float32 has few bits behind the point.
    # Supports and slopes are those of the filter on pixels; upsampling reaches 1.5 pixels beyond the pair's center.
    x_shared, y_shared = 1, 1
    if chroma:
        x_shared = tl.where(tl.load(luma_window + 2) > 1.5 * tl.load(window + 2), 2, 1)
        y_shared = tl.where(tl.load(luma_window + 3) > 1.5 * tl.load(window + 3), 2, 1)
    x_scale, y_scale = tl.load(window + 2) / resolution, tl.load(window + 3) / resolution
    x_filter, y_filter = tl.maximum(x_shared * x_scale, 1.0), tl.maximum(y_shared * y_scale, 1.0)
    x_support = (x_filter + 1.5 * (x_shared - 1)) / x_shared
    y_support = (y_filter + 1.5 * (y_shared - 1)) / y_shared
    x_center = tl.load(window) + (columns + 0.5) * x_scale
    y_center = tl.load(window + 1) + (rows + 0.5) * y_scale
    x_begin, y_begin = tl.floor(x_center - x_support + 0.5), tl.floor(y_center - y_support + 0.5)
    x_distance = (x_shared * (x_begin - x_center) + 0.5).to(tl.float32)
    y_distance = (y_shared * (y_begin - y_center) + 0.5).to(tl.float32)
    x_first, y_first = x_begin.to(tl.int32), y_begin.to(tl.int32)
    x_taps = tl.where(width > 0, tl.ceil(2 * x_support).to(tl.int32), 0)
    y_taps = tl.where(width > 0, tl.ceil(2 * y_support).to(tl.int32), 0)
    x_slope, y_slope = (1 / x_filter).to(tl.float32), (1 / y_filter).to(tl.float32)

    sums = tl.zeros((rows.shape[0], columns.shape[1]), tl.float32)
    x_total, y_total = tl.zeros(columns.shape, tl.float32), tl.zeros(rows.shape, tl.float32)
    # Compiled, this is what range() gives; Triton's interpreter cannot take range() of a number that was loaded with
    # every version of numpy.
    x_tap = 0
    while x_tap < x_taps:
        x_total += _weight(x_tap, x_first, x_distance, x_slope, width, x_shared, chroma)
        x_tap += 1
    y_tap = 0
    while y_tap < y_taps:
        y_weight = _weight(y_tap, y_first, y_distance, y_slope, height, y_shared, chroma)
        y = y_first + y_tap
        y_wanted = y_weight > 0
        first_tile = tl.load(positions + y // block_height, mask=y_wanted, other=0).to(tl.int32)
        row_sums = tl.zeros((rows.shape[0], columns.shape[1]), tl.float32)
        x_tap = 0
        while x_tap < x_taps:
            x_weight = _weight(x_tap, x_first, x_distance, x_slope, width, x_shared, chroma)
            x = x_first + x_tap
            tile = first_tile + x // block_width
            row = tile // per_strip * block_height + y % block_height
            column = tile % per_strip * block_width + x % block_width
            values = tl.load(samples + row * stride + column, mask=y_wanted & (x_weight > 0), other=0)
            row_sums += x_weight * values.to(tl.float32)
            x_tap += 1
        sums += y_weight * row_sums
        y_total += y_weight
        y_tap += 1
    total = x_total * y_total
    return tl.where(total > 0, sums / total, 128.0)


@triton.jit
def _store(place: tl.tensor, values: tl.tensor, wanted: tl.tensor) -> None:
    values = tl.minimum(tl.maximum(tl.floor(values + 0.5), 0), 255)
    tl.store(place, values.to(tl.uint8), mask=wanted)


@triton.jit(do_not_specialize=["resolution", "blocks"])
def _resample(
    samples: tl.tensor,
    positions: tl.tensor,
    planes: tl.tensor,
    windows: tl.tensor,
    turns: tl.tensor,
    result: tl.tensor,
    jfif: tl.tuple,
    resolution: tl.tensor,
    blocks: tl.tensor,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    planar: tl.constexpr,
) -> None:
    """Make ``block_rows`` x ``block_columns`` pixels of one sample; ``blocks`` is the programs in a row of them."""
    sample = tl.program_id(1).to(tl.int64)
    rows = (tl.program_id(0) // blocks * block_rows + tl.arange(0, block_rows))[:, None]
    columns = (tl.program_id(0) % blocks * block_columns + tl.arange(0, block_columns))[None, :]
    plane, window = planes + 24 * sample, windows + 12 * sample
    luma = _resample_plane(samples, positions, plane, window, window, rows, columns, resolution, False)
    cb = _resample_plane(samples, positions, plane + 8, window + 4, window, rows, columns, resolution, True) - 128
    cr = _resample_plane(samples, positions, plane + 16, window + 8, window, rows, columns, resolution, True) - 128

    transposed = tl.load(turns + 3 * sample) != 0
    x, y = tl.where(transposed, rows, columns), tl.where(transposed, columns, rows)
    x = tl.where(tl.load(turns + 3 * sample + 1) != 0, resolution - 1 - x, x)
    y = tl.where(tl.load(turns + 3 * sample + 2) != 0, resolution - 1 - y, y)
    wanted = (rows < resolution) & (columns < resolution)
    pixels = resolution * resolution
    step = pixels if planar else 1
    place = result + sample * (3 * pixels) + (y * resolution + x) * (1 if planar else 3)
    _store(place, luma + jfif[0] * cr, wanted)
    _store(place + step, luma + jfif[1] * cb + jfif[2] * cr, wanted)
    _store(place + 2 * step, luma + jfif[3] * cb, wanted)


def resample_by_triton(regions: Regions, resolution: int, memory_format: torch.memory_format) -> torch.Tensor:
    """Do what `kernels.device_regions.resample_regions` does, in one kernel; nothing waits for the device."""
    shape = (len(regions), 3, resolution, resolution)
    result = torch.empty(shape, dtype=torch.uint8, device=regions.samples.device, memory_format=memory_format)
    if not len(regions):
        return result
    blocks = triton.cdiv(resolution, _COLUMNS)
    with torch.cuda.device_of(regions.samples):
        _resample[(blocks * triton.cdiv(resolution, _ROWS), len(regions))](
            regions.samples,
            regions.positions,
            regions.planes,
            regions.windows,
            regions.turns.view(torch.uint8),
            result,
            JFIF,
            resolution,
            blocks,
            _ROWS,
            _COLUMNS,
            planar=memory_format == torch.contiguous_format,
        )
    return result
