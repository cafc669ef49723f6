"""Headers and planes of JPEGs: Pillow is the oracle."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kernels.jpeg import (
    BAD,
    OK,
    UNSUPPORTED,
    JpegLibraryError,
    Status,
    create_handle,
    decode_planes,
    decode_rgb,
    destroy_handle,
    load_library,
    read_header,
)
from kernels.jpeg_header import (
    CHROMA_X,
    CHROMA_Y,
    COMPONENTS,
    ENTROPY_AT,
    FRAME_SIZE_AT,
    HEADER_FIELDS,
    HEIGHT,
    LAYOUT_FIELDS,
    MCU_COLUMNS,
    MCU_HEIGHT,
    MCU_ROWS,
    MCU_WIDTH,
    PLANE_OFFSET,
    PLANE_STRIDE,
    RESTART_INTERVAL,
    SEQUENTIAL,
    WIDTH,
    lay_out_planes,
)
from tests.images import photo
from tests.jpegs import SAMPLINGS, decode, decoder, encode, header_of

try:
    load_library()
except JpegLibraryError as error:
    pytest.skip(str(error), allow_module_level=True)

FACTORS = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2), "gray": (1, 1), "4:4:0": (1, 2)}
SIDES = st.one_of(st.integers(1, 20), st.integers(1, 120))


def pixels_of(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.asarray(photo(width, height, seed))


def by_pillow(record: np.ndarray, mode: str | None = None, shift: int = 0) -> np.ndarray:
    with Image.open(io.BytesIO(record.tobytes())) as image:
        size = (image.width >> shift, image.height >> shift)
        if mode is not None or shift > 0:
            image.draft(mode, size)
        return np.asarray(image)


def status_of(record: np.ndarray | bytes) -> int:
    """Return the status of reading and decoding, the worse of the two."""
    return decode(np.frombuffer(record, np.uint8) if isinstance(record, bytes) else record)[0]


def with_bytes(record: np.ndarray, at: int, values: bytes) -> np.ndarray:
    changed = record.copy()
    changed[at : at + len(values)] = list(values)
    return changed


def inserted(record: np.ndarray, at: int, values: bytes) -> np.ndarray:
    return np.insert(record, at, list(values))


def frame_at(record: np.ndarray) -> int:
    """Return where the frame header's marker stands."""
    return int(header_of(record)[FRAME_SIZE_AT]) - 5


@settings(deadline=None, max_examples=60)
@given(
    width=SIDES,
    height=SIDES,
    sampling=st.sampled_from(sorted(SAMPLINGS)),
    interval=st.integers(0, 9),
    progressive=st.booleans(),
)
def test_headers_say_what_was_encoded(width: int, height: int, sampling: str, interval: int, progressive: bool) -> None:
    record = encode(pixels_of(width, height), sampling, interval, progressive)
    header = header_of(record)
    chroma_x, chroma_y = FACTORS[sampling]
    assert (header[WIDTH], header[HEIGHT]) == (width, height)
    assert header[COMPONENTS] == (1 if sampling == "gray" else 3)
    assert (header[CHROMA_X], header[CHROMA_Y]) == (chroma_x, chroma_y)
    assert (header[MCU_WIDTH], header[MCU_HEIGHT]) == (8 * chroma_x, 8 * chroma_y)
    assert (header[MCU_COLUMNS], header[MCU_ROWS]) == (-(-width // (8 * chroma_x)), -(-height // (8 * chroma_y)))
    assert header[SEQUENTIAL] == (not progressive)
    assert header[RESTART_INTERVAL] == interval
    entropy = int(header[ENTROPY_AT])
    components = 1 if progressive else int(header[COMPONENTS])  # of the first scan
    assert bytes(record[frame_at(record) :][:2]) == (b"\xff\xc2" if progressive else b"\xff\xc0")
    scan = bytes(record[:entropy]).rfind(b"\xff\xda")
    assert entropy >= scan + 8 + 2 * components


@settings(deadline=None, max_examples=60)
@given(
    width=SIDES,
    height=SIDES,
    sampling=st.sampled_from(sorted(SAMPLINGS)),
    shift=st.integers(0, 3),
    progressive=st.booleans(),
)
def test_planes_are_those_of_pillow(width: int, height: int, sampling: str, shift: int, progressive: bool) -> None:
    shift = min(shift, min(width, height).bit_length() - 1)  # Pillow scales nothing below a pixel
    if max(width, height) <= 5:
        shift = 0  # and libjpeg may choose another scale
    record = encode(pixels_of(width, height), sampling, 0, progressive)
    status, planes = decode(record, shift)
    assert status == OK
    expected = by_pillow(record, "L" if sampling == "gray" else "YCbCr", shift)
    if sampling == "gray":
        assert planes[0].tolist() == expected.tolist()
        return
    assert planes[0].tolist() == expected[..., 0].tolist()
    if sampling == "4:4:4":
        assert planes[1].tolist() == expected[..., 1].tolist()
        assert planes[2].tolist() == expected[..., 2].tolist()


@pytest.mark.parametrize("sampling", ["4:2:2", "4:2:0", "4:4:0"])
def test_chroma_has_its_own_resolution(sampling: str) -> None:
    record = encode(pixels_of(99, 75), sampling)
    _, planes = decode(record)
    expected = by_pillow(record, "YCbCr")
    x, y = FACTORS[sampling]
    for component in (1, 2):
        upsampled = planes[component].repeat(x, axis=1).repeat(y, axis=0)[:75, :99]
        difference = np.abs(upsampled.astype(int) - expected[..., component])
        assert difference.mean() < 2  # Pillow interpolates


@pytest.mark.parametrize("sampling", sorted(SAMPLINGS))
@pytest.mark.parametrize("progressive", [False, True])
def test_rgb_is_that_of_pillow(sampling: str, progressive: bool) -> None:
    record = encode(pixels_of(83, 61), sampling, 3, progressive)
    header = header_of(record)
    out = np.zeros((61, 83, 3), np.uint8)
    assert decode_rgb(decoder(), record, header, out) == OK
    with Image.open(io.BytesIO(record.tobytes())) as image:
        assert out.tolist() == np.asarray(image.convert("RGB")).tolist()
    assert decode_rgb(decoder(), record, header, np.zeros((61, 82, 3), np.uint8)) == BAD


@pytest.mark.parametrize("sampling", sorted(SAMPLINGS))
@pytest.mark.parametrize("shift", range(4))
def test_nothing_is_written_outside_of_planes(sampling: str, shift: int) -> None:
    for width, height in ((1, 1), (17, 9), (64, 48), (71, 33)):
        record = encode(pixels_of(width, height), sampling)
        header = header_of(record)
        layout = np.zeros(LAYOUT_FIELDS, np.int64)
        size = lay_out_planes(header, header[MCU_COLUMNS], header[MCU_ROWS], shift, layout)
        memory = np.full(size + 512, 0xA5, np.uint8)
        layout[PLANE_OFFSET : PLANE_OFFSET + 3] += 256
        assert decode_planes(decoder(), record, header, width, height, shift, memory, layout, 0) == OK
        assert (memory[:256] == 0xA5).all()
        assert (memory[size + 256 :] == 0xA5).all()
        rows, stride = -(-height // (1 << shift)), int(layout[PLANE_STRIDE])
        for field, value in (
            (PLANE_OFFSET, -1),
            (PLANE_OFFSET, len(memory) - rows * stride + stride),
            (PLANE_STRIDE, 0),
        ):
            elsewhere = layout.copy()  # planes that do not fit are not decoded at all
            elsewhere[field] = value
            memory[:] = 0xA5
            assert decode_planes(decoder(), record, header, width, height, shift, memory, elsewhere, 0) == BAD
            assert (memory == 0xA5).all()


def test_what_pillow_alone_can_convert_is_unsupported() -> None:
    image = photo(40, 30)

    def saved(image: Image.Image, **options: object) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", **options)
        return file.getvalue()

    assert status_of(saved(image.convert("CMYK"))) == UNSUPPORTED
    assert status_of(saved(image, keep_rgb=True)) == UNSUPPORTED
    record = encode(pixels_of(40, 30), "4:4:4")
    frame = frame_at(record)
    for marker in (0xC3, 0xC5, 0xC9, 0xCA, 0xCF):  # lossless, hierarchical, arithmetic
        assert status_of(with_bytes(record, frame + 1, bytes([marker]))) == UNSUPPORTED
    assert status_of(with_bytes(record, frame + 4, b"\x0c")) == UNSUPPORTED  # 12 bits
    for factors in (b"\x41", b"\x14", b"\x31"):  # 4:1:1 and others
        assert status_of(with_bytes(record, frame + 11, factors)) == UNSUPPORTED
    assert status_of(with_bytes(record, frame + 14, b"\x21")) == UNSUPPORTED


def test_color_is_told_by_markers_as_libjpeg_does() -> None:
    record = encode(pixels_of(40, 30), "4:4:4")
    assert bytes(record[2:4]) == b"\xff\xe0"
    bare = np.delete(record, slice(2, 4 + 16))  # without the JFIF marker
    ids = frame_at(bare) + 10

    def adobe(transform: int) -> bytes:
        return b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0" + bytes([transform])

    assert status_of(bare) == OK
    named = bare.copy()
    scan = int(header_of(bare)[ENTROPY_AT]) - 9
    named[ids : ids + 9 : 3] = named[scan : scan + 6 : 2] = list(b"RGB")
    assert status_of(named) == UNSUPPORTED
    assert status_of(inserted(bare, 2, adobe(0))) == UNSUPPORTED
    assert status_of(inserted(bare, 2, adobe(1))) == OK
    assert status_of(inserted(named, 2, adobe(1))) == OK  # Adobe's word counts for more than names,
    assert status_of(inserted(record, 20, adobe(0))) == OK  # and JFIF's for more than Adobe's
    planes = decode(inserted(record, 20, adobe(0)))[1]
    assert planes[1].tolist() == decode(record)[1][1].tolist()


def test_headers_cut_off_anywhere_are_bad() -> None:
    record = encode(pixels_of(40, 30), restart_interval=2)
    header = np.zeros(HEADER_FIELDS, np.int64)
    for length in range(int(header_of(record)[ENTROPY_AT]) + 1):
        assert read_header(record[:length], header) == BAD
    for text in (b"", b"\xff", b"\xff\xd8\xff\xd9", b"This is no image.", b"\xff\xd8" + bytes(100)):
        assert read_header(np.frombuffer(text, np.uint8), header) == BAD


def test_headers_that_lie_are_bad() -> None:
    record = encode(pixels_of(40, 30))
    size = int(header_of(record)[FRAME_SIZE_AT])
    header = np.zeros(HEADER_FIELDS, np.int64)
    for values in (b"\0\0\0\x28", b"\0\x1e\0\0", b"\xff\xff\xff\xff", b"\xff\xdc\xff\xdc", b"\xff\xdd\0\x01"):
        assert read_header(with_bytes(record, size, values), header) == BAD
    frame = frame_at(record)
    assert read_header(inserted(record, frame, bytes(record[frame : frame + 19])), header) == BAD  # two frames
    assert read_header(with_bytes(record, frame + 3, b"\x12"), header) == BAD  # length of the segment
    without = np.delete(record, slice(frame, frame + 19))
    assert read_header(without, header) == BAD


@pytest.mark.parametrize("progressive", [False, True])
def test_data_cut_off_anywhere_are_bad(progressive: bool) -> None:
    record = encode(pixels_of(60, 50), "4:2:0", 0, progressive)
    entropy = int(header_of(record)[ENTROPY_AT])
    for length in np.linspace(entropy + 1, len(record) - 1, 25).astype(int):
        assert status_of(record[:length]) == BAD
    assert status_of(np.append(record[: (entropy + len(record)) // 2], [0xFF, 0xD9]).astype(np.uint8)) == BAD
    assert status_of(record) == OK


def test_invalid_codes_are_bad() -> None:
    record = encode(pixels_of(60, 50))
    text = bytes(record)
    table = text.index(b"\xff\xc4") + 5  # numbers of codes of each length: leave few of them valid
    broken = with_bytes(record, table, bytes([0, 1] + [0] * 13 + [int(record[table : table + 16].sum()) - 1]))
    assert status_of(broken) == BAD
    assert status_of(np.delete(record, slice(table - 5, table - 3 + int(record[table - 3]) * 256 + 31))) == BAD


def test_extraneous_bytes_are_no_fault() -> None:
    record = encode(pixels_of(60, 50), restart_interval=3)
    expected = [plane.tolist() for plane in decode(record)[1]]
    frame = frame_at(record)
    marker = bytes(record).index(b"\xff\xd2", int(header_of(record)[ENTROPY_AT]))
    revision = with_bytes(record, 11, b"\x07")  # of JFIF, which nobody knows
    harmless = [
        inserted(record, len(record) - 2, bytes(30)),
        inserted(record, len(record), b"more of something else"),
        inserted(record, frame, b"abc"),
        inserted(record, frame, b"\xff\xff\xff"),  # fill bytes
        inserted(record, marker, b"junk"),
        inserted(record, marker, b"\xff\xff"),
        revision,
    ]
    for changed in harmless:
        status, planes = decode(changed)
        assert status == OK
        assert [plane.tolist() for plane in planes] == expected
        assert status_of(changed[: marker + 30]) == BAD  # the first warning does not hide that the end is missing
    assert status_of(inserted(record[: marker + 30], frame, b"abc")) == BAD


def test_lost_and_exchanged_restart_markers_are_bad() -> None:
    record = encode(pixels_of(90, 70), restart_interval=2)
    entropy = int(header_of(record)[ENTROPY_AT])
    marker = bytes(record).index(b"\xff\xd2", entropy)
    following = bytes(record).index(b"\xff\xd3", marker)
    assert status_of(np.delete(record, [marker, marker + 1])) == BAD
    assert status_of(np.delete(record, slice(marker, following))) == BAD
    assert status_of(with_bytes(record, marker + 1, b"\xd6")) == BAD


def test_a_bad_image_leaves_the_decoder_usable() -> None:
    good = encode(pixels_of(60, 50))
    expected = [plane.tolist() for plane in decode(good)[1]]
    entropy = int(header_of(good)[ENTROPY_AT])
    tables = bytes(good).index(b"\xff\xc4")
    for bad in (
        good[: len(good) // 2],
        with_bytes(good, frame_at(good) + 11, b"\x11"),  # another sampling
        with_bytes(good, entropy - 9, b"\x77"),  # a scan of a component that there is not
        with_bytes(good, tables + 5, b"\xff" * 16),  # impossible code lengths
    ):
        assert status_of(bad) != OK
        status, planes = decode(good)
        assert status == OK
        assert [plane.tolist() for plane in planes] == expected


def test_threads_have_a_decoder_each() -> None:
    records = [encode(pixels_of(70 + n, 60, seed=n)) for n in range(8)]
    expected = [decode_to_rgb(decoder(), record) for record in records]

    def work(number: int) -> bool:
        handle = create_handle()
        same = True
        for turn in range(40):
            n = (turn + number) % len(records)
            same = same and bool((decode_to_rgb(handle, records[n]) == expected[n]).all())
        destroy_handle(handle)
        return same

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def decode_to_rgb(handle: int, record: np.ndarray) -> np.ndarray:
    header = header_of(record)
    out = np.empty((header[HEIGHT], header[WIDTH], 3), np.uint8)
    assert decode_rgb(handle, record, header, out) == OK
    return out


@pytest.mark.parametrize("library", ["/nonexistent/libturbojpeg.so", "libc.so.6"])
def test_without_the_library_an_error_says_what_to_do(library: str) -> None:
    program = (
        "import kernels.jpeg, kernels.restart\n"
        "try:\n    kernels.jpeg.load_library()\n"
        "except kernels.jpeg.JpegLibraryError as error:\n    print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"HEADRACE_TURBOJPEG": library},
        capture_output=True,
        text=True,
        check=True,
    )
    for hint in (library, "libturbojpeg0", "libjpeg-turbo", "HEADRACE_TURBOJPEG", "--loader torch", "--loader dali"):
        assert hint in result.stdout


def test_statuses_are_their_numbers() -> None:
    assert [Status.OK, Status.BAD, Status.UNSUPPORTED] == [OK, BAD, UNSUPPORTED]
