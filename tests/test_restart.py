"""Regions of JPEGs: every sample must be what decoding the whole image gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from kernels.jpeg import BAD, OK, SCRATCH_TOO_SMALL, JpegLibraryError, Status, load_library, read_header
from kernels.jpeg_header import (
    BLOCK_HEIGHT,
    BLOCK_WIDTH,
    COMPONENTS,
    ENTROPY_AT,
    FRAME_SIZE_AT,
    HEADER_FIELDS,
    LAYOUT_FIELDS,
    MCU_COLUMNS,
    MCU_ROWS,
    PLANE_OFFSET,
    PLANE_STRIDE,
    STRIP_COLUMNS,
)
from kernels.restart import decode_region, find_intervals, interval_count, interval_starts, region_bytes
from tests.jpegs import SAMPLINGS, decode, decoder, encode, header_of

try:
    load_library()
except JpegLibraryError as error:
    pytest.skip(str(error), allow_module_level=True)

Region = tuple[int, int, int, int]  # rows from and up to, columns from and up to, in MCUs
NO_INTERVALS = np.empty(0, np.uint32)
GUARD = 64


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return a picture no two places of which look alike."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
    return small.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]


def run(
    record: np.ndarray, header: np.ndarray, starts: np.ndarray, region: Region, shift: int, spare: int = 0
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Decode a region with guards around the scratch; return the status, the scratch, the positions and the layout."""
    size = region_bytes(header, len(starts), *region, shift, len(record)) + spare
    guarded = np.full(size + 2 * GUARD, 0xA5, np.uint8)
    positions = np.full(region[1] - region[0] + 2, -7, np.int64)
    layout = np.full(LAYOUT_FIELDS, -7, np.int64)
    scratch = guarded[GUARD : GUARD + size]
    status = decode_region(decoder(), record, header, starts, *region, shift, scratch, positions[1:-1], layout)
    assert (guarded[:GUARD] == 0xA5).all()
    assert (guarded[GUARD + size :] == 0xA5).all()
    assert positions[0] == positions[-1] == -7
    return status, scratch, positions[1:-1], layout


def assert_exact(record: np.ndarray, starts: np.ndarray, region: Region, shift: int) -> None:
    """Compare a region, tile by tile, with the same samples of the whole image."""
    header = header_of(record)
    status, scratch, positions, layout = run(record, header, starts, region, shift)
    assert status == OK
    whole_status, expected = decode(record, shift)
    assert whole_status == OK
    columns = layout[STRIP_COLUMNS]
    for component in range(header[COMPONENTS]):
        width, height = int(layout[BLOCK_WIDTH + component]), int(layout[BLOCK_HEIGHT + component])
        stride = int(layout[PLANE_STRIDE + component])
        for row in range(region[0], region[1]):
            for column in range(region[2], region[3]):
                strip_row, strip_column = divmod(positions[row - region[0]] + column - region[2], columns)
                at = layout[PLANE_OFFSET + component] + strip_row * height * stride + strip_column * width
                tile = as_strided(scratch[at : at + (height - 1) * stride + width], (height, width), (stride, 1))
                samples = expected[component][row * height :, column * width :][:height, :width]
                assert (tile[: samples.shape[0], : samples.shape[1]] == samples).all(), (component, row, column)


@st.composite
def regions(draw: st.DrawFn, header: np.ndarray) -> Region:
    """A region anywhere, at an edge as often as not."""
    row0 = draw(st.integers(0, int(header[MCU_ROWS]) - 1))
    row1 = draw(st.integers(row0 + 1, int(header[MCU_ROWS])))
    column0 = draw(st.integers(0, int(header[MCU_COLUMNS]) - 1))
    column1 = draw(st.integers(column0 + 1, int(header[MCU_COLUMNS])))
    return row0, row1, column0, column1


@settings(deadline=None, max_examples=200)
@given(
    data=st.data(),
    width=st.integers(6, 200),
    height=st.integers(6, 150),
    sampling=st.sampled_from(sorted(SAMPLINGS)),
    interval=st.one_of(st.integers(0, 8), st.integers(0, 60)),
    progressive=st.sampled_from([False, False, False, True]),
    indexed=st.sampled_from([True, True, True, False]),
    shift=st.integers(0, 3),
)
def test_regions_are_exact(
    data: st.DataObject,
    width: int,
    height: int,
    sampling: str,
    interval: int,
    progressive: bool,
    indexed: bool,
    shift: int,
) -> None:
    record = encode(noise(width, height), sampling, interval, progressive)
    header = header_of(record)
    starts = interval_starts(record) if indexed else NO_INTERVALS
    count = -(-int(header[MCU_COLUMNS] * header[MCU_ROWS]) // interval) if interval else 0
    assert not indexed or len(starts) == (count + 1 if count > 1 and not progressive else 0)
    assert_exact(record, starts, data.draw(regions(header)), shift)


def whole_of(header: np.ndarray) -> Region:
    return 0, int(header[MCU_ROWS]), 0, int(header[MCU_COLUMNS])


def test_intervals_lie_between_their_markers() -> None:
    record = encode(noise(90, 70), restart_interval=4)
    header = header_of(record)
    starts = interval_starts(record)
    assert starts.dtype == np.uint32
    assert starts[0] == header[ENTROPY_AT]
    assert starts[-1] == len(record)
    assert len(starts) == interval_count(header) + 1 == -(-6 * 5 // 4) + 1
    for number, start in enumerate(starts[1:]):
        last = number == len(starts) - 2
        assert list(record[start - 2 : start]) == [0xFF, 0xD9 if last else 0xD0 + number % 8]


def test_more_may_stand_behind_the_image_and_before_a_marker() -> None:
    record = encode(noise(90, 70), restart_interval=4)
    starts = interval_starts(record)
    longer = np.append(record, np.arange(99, dtype=np.uint8))
    assert interval_starts(longer).tolist() == starts.tolist()
    assert_exact(longer, starts, (1, 3, 1, 4), 0)
    filled = np.insert(record, int(starts[3]) - 2, [0xFF, 0xFF])
    assert interval_starts(filled).tolist() == [*starts[:3], *(starts[3:] + 2)]
    assert_exact(filled, interval_starts(filled), (0, 5, 1, 4), 1)


@pytest.mark.parametrize("interval", [0, 30, 100])
def test_images_of_one_interval_have_none(interval: int) -> None:
    assert len(interval_starts(encode(noise(90, 70), restart_interval=interval))) == 0


def test_intervals_that_do_not_serve_are_none() -> None:
    record = encode(noise(90, 70), restart_interval=4)
    starts = interval_starts(record)
    marker = int(starts[2]) - 2

    def with_byte(at: int, value: int) -> np.ndarray:
        changed = record.copy()
        changed[at] = value
        return changed

    useless = [
        encode(noise(90, 70), restart_interval=4, progressive=True),
        record[:-2],  # no end
        record[: marker + 9],
        np.delete(record, [marker, marker + 1]),
        with_byte(marker + 1, 0xD5),  # out of turn
        with_byte(marker + 1, 0xC4),  # a table inside the data
        np.delete(record, slice(marker, int(starts[3]) - 2)),
        np.insert(record, len(record) - 2, [0xFF, 0xD7]),  # one too many
        with_byte(header_of(record)[FRAME_SIZE_AT] + 1, 90),  # another height
        np.frombuffer(b"no image", np.uint8),
    ]
    for changed in useless:
        assert len(interval_starts(changed)) == 0
    short = np.empty(len(starts) - 1, np.uint32)
    assert find_intervals(record, header_of(record), short) == 0


def test_intervals_too_wide_for_a_strip_are_none() -> None:
    record = encode(np.zeros((900, 900, 3), np.uint8), "gray", restart_interval=9000)
    assert len(interval_starts(record)) == 0
    aligned = encode(np.zeros((900, 900, 3), np.uint8), "gray", restart_interval=113 * 80)  # rows of the image
    starts = interval_starts(aligned)
    assert len(starts) == 3
    assert_exact(aligned, starts, (78, 83, 0, 5), 2)


@pytest.mark.parametrize(("sampling", "interval"), [("4:2:0", 2), ("gray", 4)])
def test_strips_longer_than_libjpeg_takes(sampling: str, interval: int) -> None:
    side = 1616 if sampling == "4:2:0" else 1496  # an odd number of MCUs
    record = encode(noise(side, side), sampling, interval, quality=20)
    header = header_of(record)
    assert interval_count(header) * (16 if sampling == "4:2:0" else 8) > 65_500
    assert_exact(record, interval_starts(record), whole_of(header), 3)


def test_images_as_wide_and_high_as_libjpeg_takes() -> None:
    wide = encode(noise(65_500, 9), "4:2:0", 2, quality=20)
    for starts in (interval_starts(wide), NO_INTERVALS):
        assert_exact(wide, starts, (0, 1, 4000, 4094), 0)
        assert_exact(wide, starts, (0, 1, 0, 4094), 2)
    high = encode(noise(9, 65_500), "4:4:0", 3, quality=20)
    for starts in (interval_starts(high), NO_INTERVALS):
        assert_exact(high, starts, (4000, 4094, 1, 2), 0)
    progressive = encode(noise(9, 65_500), "4:2:0", 0, progressive=True, quality=20)
    assert_exact(progressive, NO_INTERVALS, (4090, 4094, 0, 1), 1)


@pytest.mark.parametrize("interval", [0, 2, 3, 7])
@pytest.mark.parametrize("factors", [0x22, 0x12, 0x41])
def test_sampling_factors_of_one_component_mean_nothing(factors: int, interval: int) -> None:
    record = encode(noise(77, 61), "gray", interval)
    unusual = record.copy()
    unusual[header_of(record)[FRAME_SIZE_AT] + 6] = factors
    for shift in range(4):
        for region in ((0, 8, 0, 10), (7, 8, 9, 10), (2, 5, 3, 8)):
            status, scratch, positions, layout = run(
                unusual, header_of(unusual), interval_starts(unusual), region, shift
            )
            expected = run(record, header_of(record), interval_starts(record), region, shift)
            assert status == expected[0] == OK
            end = layout[BLOCK_HEIGHT] * layout[PLANE_STRIDE] * (positions[-1] // layout[STRIP_COLUMNS])
            assert (scratch[:end] == expected[1][:end]).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (5, 3), (16, 1), (1, 40)])
def test_tiny_images_are_decoded_at_the_scale_asked_for(width: int, height: int) -> None:
    """Alone, the library would take one of its other scales that give as many pixels."""
    large = np.full((48, 48, 3), 128, np.uint8)
    large[:height, :width] = noise(width, height)
    for progressive in (False, True):
        record = encode(noise(width, height), "4:4:4", 0, progressive)
        for shift in range(4):
            region = whole_of(header_of(record))
            status, scratch, _, layout = run(record, header_of(record), NO_INTERVALS, region, shift)
            assert status == OK
            padded = record.copy()
            size = int(header_of(record)[FRAME_SIZE_AT])
            padded[[size + 1, size + 3]] = -(-height // 8) * 8, -(-width // 8) * 8
            _, expected = decode(padded, shift)
            stride = int(layout[PLANE_STRIDE])
            assert (scratch[: expected[0].size].reshape(-1, stride) == expected[0]).all()


def test_rows_below_the_region_cost_no_decoding() -> None:
    record = encode(noise(90, 160), "4:2:0")
    header = header_of(record)
    _, scratch, _, layout = run(record, header, NO_INTERVALS, (0, 2, 0, 6), 0)
    written = int(layout[PLANE_STRIDE]) * 32
    assert (scratch[written : layout[PLANE_OFFSET + 1]] == 0xA5).all()


def test_files_cut_off_are_bad_whatever_the_region() -> None:
    record = encode(noise(90, 160), "4:2:0")
    header = header_of(record)
    for length in np.linspace(int(header[ENTROPY_AT]) + 1, len(record) - 1, 12).astype(int):
        for region in ((0, 1, 0, 1), (9, 10, 0, 6)):
            assert run(record[:length], header_of(record), NO_INTERVALS, region, 0)[0] == BAD


def test_damaged_intervals_are_bad_where_they_are_needed() -> None:
    record = encode(noise(96, 64), "4:2:0", 3)
    starts = interval_starts(record)
    damaged = record.copy()
    damaged[starts[2] : starts[2] + 12] = [0xFF, 0x00] * 6
    damaged[starts[2] + 12 : starts[3] - 2] = 0x55
    assert run(damaged, header_of(record), starts, (1, 2, 0, 3), 0)[0] == BAD
    for region in ((0, 1, 0, 6), (1, 2, 3, 6), (2, 4, 0, 6)):
        status, scratch, _, _ = run(damaged, header_of(record), starts, region, 0)
        assert status == OK
        expected = run(record, header_of(record), starts, region, 0)[1]
        size = (region[1] - region[0]) * (region[3] - region[2]) * 384
        assert (scratch[:size] == expected[:size]).all()


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 3000), min_size=9, max_size=9), keep=st.integers(0, 9)
)
def test_an_index_that_lies_is_bad(values: list[int], keep: int) -> None:
    record = encode(noise(90, 70), restart_interval=4)
    starts = interval_starts(record)
    lying = np.array([*starts[:keep], *values[keep:]], np.uint32)
    status = run(record, header_of(record), lying, (0, 5, 0, 6), 0)[0]
    assert status == (OK if lying.tolist() == starts.tolist() else BAD)
    assert run(record, header_of(record), starts[:-1], (0, 5, 0, 6), 0)[0] == BAD
    plain = encode(noise(90, 70))
    assert run(plain, header_of(plain), starts, (0, 5, 0, 6), 0)[0] == BAD


def test_regions_outside_of_the_image_are_bad() -> None:
    record = encode(noise(90, 70), restart_interval=4)
    header = header_of(record)
    outside = [(-1, 2, 0, 2), (0, 6, 0, 2), (2, 2, 0, 2), (0, 2, -1, 2), (0, 2, 0, 7), (0, 2, 3, 3)]
    scratch, positions, layout = np.empty(100_000, np.uint8), np.empty(9, np.int64), np.empty(LAYOUT_FIELDS, np.int64)
    for starts in (interval_starts(record), NO_INTERVALS):
        for region in outside:
            assert decode_region(decoder(), record, header, starts, *region, 0, scratch, positions, layout) == BAD
        for shift in (-1, 4):
            assert (
                decode_region(decoder(), record, header, starts, 0, 1, 0, 1, shift, scratch, positions, layout) == BAD
            )


@pytest.mark.parametrize("interval", [0, 3, 4])
def test_too_little_scratch_is_said_before_anything_is_done(interval: int) -> None:
    record = encode(noise(90, 70), restart_interval=interval)
    starts = interval_starts(record)
    status, scratch, positions, layout = run(record, header_of(record), starts, (0, 5, 0, 6), 0, spare=-1)
    assert status == SCRATCH_TOO_SMALL
    assert (scratch == 0xA5).all()
    assert (positions == -7).all()
    assert (layout == -7).all()


def mutated(record: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Flip bits, mostly in the header, or cut, repeat, insert or remove bytes."""
    entropy = int(header_of(record)[ENTROPY_AT])
    changed = record.copy()
    for _ in range(random.integers(1, 4)):
        end = min(len(changed), entropy) if random.random() < 0.7 else len(changed)
        at = int(random.integers(0, end))
        kind = random.integers(0, 8)
        if kind < 4:
            changed[at] = random.choice([0, 1, 0x11, 0x22, 0xFF, changed[at] ^ (1 << random.integers(0, 8))])
        elif kind == 4:
            changed = changed[: max(at, 4)].copy()
        elif kind == 5:
            changed = np.insert(changed, at, random.integers(0, 256, random.integers(1, 30), np.uint8))
        elif kind == 6:
            changed = np.delete(changed, slice(at, at + int(random.integers(1, 30))))
        else:
            changed = np.insert(changed, at, changed[at : at + int(random.integers(1, 60))])
        if len(changed) < 4:
            return record[:4].copy()
    return changed


@pytest.mark.parametrize("seed", range(4))
def test_mutated_records_do_no_harm(seed: int) -> None:
    """No crash, nothing written outside of the scratch; whatever the bytes say."""
    random = np.random.default_rng(seed)
    records = [
        encode(noise(90, 70, seed), sampling, interval, progressive)
        for sampling in sorted(SAMPLINGS)
        for interval, progressive in ((0, False), (3, False), (4, False), (0, True))
    ]
    counts = dict.fromkeys(Status, 0)
    for turn in range(500):
        original = records[turn % len(records)]
        record = mutated(original, random)
        header = np.zeros(HEADER_FIELDS, np.int64)
        status = read_header(record, header)
        if status == OK and header[MCU_ROWS] * header[MCU_COLUMNS] < 20_000:
            rows = np.sort(random.choice(int(header[MCU_ROWS]) + 1, 2, replace=False))
            columns = np.sort(random.choice(int(header[MCU_COLUMNS]) + 1, 2, replace=False))
            starts = (interval_starts(record), interval_starts(original), NO_INTERVALS)[turn % 3]
            if len(starts) - 1 != interval_count(header):
                starts = NO_INTERVALS
            region = (int(rows[0]), int(rows[1]), int(columns[0]), int(columns[1]))
            status = run(record, header, starts, region, int(random.integers(0, 4)))[0]
        counts[Status(status)] += 1
    assert counts[Status.OK] > 50
    assert counts[Status.BAD] > 50
    assert counts[Status.SCRATCH_TOO_SMALL] == 0
    region = whole_of(header_of(records[0]))
    assert_exact(records[0], NO_INTERVALS, region, 0)
