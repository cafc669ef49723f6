"""From an image file to the JPEG records of a packed set: shrunk and re-encoded, or kept without loss."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageChops, ImageFile

from kernels.checksum import xxh64
from kernels.restart import interval_starts
from loaders.pack_records import BadImage, Jpeg, PackedImage, PackError, PackOptions, SourceImage
from loaders.pixels import open_image, orientation_of, to_rgb, upright

REENCODED_QUALITY = 95  # of what --keep cannot keep
_REDUCING_GAP = 3.0  # Pillow calls 3 all but indistinguishable from resampling in one step
_MOST_BYTES_PER_PIXEL = 6  # of any JPEG: Pillow wants room for the whole file when it optimizes
_SAMPLINGS = {(1, 1): "4:4:4", (2, 1): "4:2:2", (1, 2): "4:4:0", (2, 2): "4:2:0"}  # factors of luma, with chroma 1x1
_RGB_IDS = tuple(b"RGB")


def pack_images(images: Iterable[SourceImage], options: PackOptions) -> list[PackedImage | BadImage]:
    """Make the records of some images."""
    return [pack_image(image, options) for image in images]


def pack_image(source: SourceImage, options: PackOptions) -> PackedImage | BadImage:
    """Make the records of one image.

    Raises:
        PackError: jpegtran, which ``keep`` needs, is not installed.
    """
    try:
        with open(source.file, "rb") as file:
            file.seek(source.offset)
            data = file.read(source.size)
        with open_image(io.BytesIO(data)) as image:
            return _keep(source, data, image, options) if options.keep else _shrink(source, image, options)
    except (PackError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise whatever their parsing trips over
        return BadImage(source, getattr(error, "strerror", None) or str(error) or type(error).__name__)


def find_jpegtran() -> str:
    """Return the path of jpegtran.

    Raises:
        PackError: it is not installed.
    """
    path = shutil.which("jpegtran")
    if path is None:
        raise PackError(
            "--keep needs jpegtran, which is not installed: apt-get install libjpeg-turbo-progs (Debian, Ubuntu) or "
            "conda install -c conda-forge libjpeg-turbo; without --keep images are re-encoded and nothing is needed"
        )
    return path


def _shrink(source: SourceImage, image: Image.Image, options: PackOptions) -> PackedImage:
    """Store the upright pixels, shrunk to ``max_side``, as a new JPEG."""
    stored_size = image.size
    kind, mode = _kind(image), image.mode
    scale = min(1.0, options.max_side / max(image.size))
    if kind == "JPEG":
        image.draft(None, tuple(int(_REDUCING_GAP * side * scale) for side in image.size))  # type: ignore[arg-type]
    pixels = _pixels(image)
    orientation = orientation_of(image)  # after decoding: a PNG's may stand behind its pixels
    if scale < 1:
        pixels = pixels.resize(_scaled(stored_size, scale), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    pixels = upright(pixels, orientation)
    changes = [f"shrunk to {options.max_side} pixels"] if scale < 1 else []
    changes += [f"{kind} made JPEG"] if kind != "JPEG" else []
    changes += [f"{mode} made {pixels.mode}"] if mode != pixels.mode else []
    changes += ["turned upright"] if orientation != 1 else []
    encoded = _encoded(pixels, options.quality, "4:2:0", options.restart_blocks)
    return PackedImage(
        source,
        1,
        len(pixels.getbands()),
        _jpeg(encoded, pixels.size),
        _renditions(pixels, 1, options),
        tuple(changes),
    )


def _keep(source: SourceImage, data: bytes, image: Image.Image, options: PackOptions) -> PackedImage:
    """Store the file's own JPEG data with restart markers, where that is possible."""
    pixels = _pixels(image)
    orientation = orientation_of(image)
    reason = _obstacle(image)
    kept = None
    if reason is None:
        layers: list[tuple[int, int, int, int]] = image.layer  # type: ignore[attr-defined]  # id, factors, table
        mcu_width = 8 * layers[0][1] if len(layers) > 1 else 8
        kept = _with_restarts(data, _interval(image.width, mcu_width, options.restart_blocks))
        if kept is None:
            reason = "damaged JPEG data"
        elif not _shows(kept, pixels):
            kept, reason = None, "JPEG data that change when restart markers are added"
    if kept is None:
        pixels, orientation = upright(pixels, orientation), 1
        kept = _encoded(pixels, REENCODED_QUALITY, "4:4:4", options.restart_blocks)
        changes: tuple[str, ...] = (f"re-encoded at quality {REENCODED_QUALITY}: {reason}",)
    else:
        changes = ("progressive made baseline, without loss",) if "progressive" in image.info else ()
    return PackedImage(
        source,
        orientation,
        len(pixels.getbands()),
        _jpeg(kept, _turned(pixels.size, orientation)),
        _renditions(pixels, orientation, options),
        changes,
    )


def _kind(image: Image.Image) -> str:
    """Return the format, taking a JPEG with further pictures behind it for a JPEG."""
    return "JPEG" if image.format == "MPO" else str(image.format)


def _pixels(image: Image.Image) -> Image.Image:
    """Decode to 8-bit RGB as `loaders.pixels` does, or to gray where the file has no color."""
    image.load()
    if image.mode == "L":
        return image.copy()  # which is not bound to the file
    pixels = to_rgb(image)
    return pixels.getchannel("R") if Image.getmodebase(image.mode) == "L" else pixels


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size if orientation < 5 else (size[1], size[0])


def _renditions(pixels: Image.Image, orientation: int, options: PackOptions) -> tuple[Jpeg | None, ...]:
    """Encode the smaller versions of an image; they keep its orientation."""
    found: list[Jpeg | None] = []
    for side in options.renditions:
        scale = side / max(pixels.size)
        if scale >= 1:
            found.append(None)
            continue
        size = _scaled(pixels.size, scale)
        small = pixels.resize(size, Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
        encoded = _encoded(small, options.quality, "4:2:0", options.restart_blocks)
        found.append(_jpeg(encoded, _turned(size, orientation)))
    return tuple(found)


def _encoded(pixels: Image.Image, quality: int, subsampling: str, restart_blocks: int) -> bytes:
    """Return a baseline JPEG with optimized Huffman tables and restart markers, and nothing but the picture."""
    room = _MOST_BYTES_PER_PIXEL * pixels.width * pixels.height
    ImageFile.MAXBLOCK = max(ImageFile.MAXBLOCK, room)  # noise is refused otherwise
    mcu_width = 16 if subsampling == "4:2:0" and pixels.mode != "L" else 8
    buffer = io.BytesIO()
    pixels.save(
        buffer,
        "JPEG",
        quality=quality,
        subsampling=subsampling,
        optimize=True,
        restart_marker_blocks=_interval(pixels.width, mcu_width, restart_blocks),
        comment=b"",  # Pillow would copy the file's
    )
    return buffer.getvalue()


def _jpeg(data: bytes, size: tuple[int, int]) -> Jpeg:
    record = np.frombuffer(data, np.uint8)
    starts = interval_starts(record).astype("<u4").view(np.uint8)
    return Jpeg(data, *size, int(xxh64(record)), starts.tobytes(), int(xxh64(starts)))


def _obstacle(image: Image.Image) -> str | None:
    """Return what keeps a decoded file's data from being used as they are, None for nothing.

    How three components are coded follows libjpeg: JFIF is YCbCr; else Adobe's marker tells; else the identifiers do.
    """
    kind = _kind(image)
    if kind != "JPEG":
        return f"{kind} file"
    layers: list[tuple[int, int, int, int]] = image.layer  # type: ignore[attr-defined]  # id, factors, table
    if len(layers) == 1:
        return None
    if len(layers) != 3:
        return f"{image.mode} colors"
    identifiers = tuple(layer[0] for layer in layers)
    if "jfif" not in image.info and (
        image.info["adobe_transform"] == 0 if "adobe_transform" in image.info else identifiers == _RGB_IDS
    ):
        return "RGB-coded JPEG"
    luma, *chroma = (layer[1:3] for layer in layers)
    if luma not in _SAMPLINGS or chroma != [(1, 1), (1, 1)]:
        return "unusual chroma sampling"
    return None


def _interval(width: int, mcu_width: int, wanted: int) -> int:
    """Return how many MCUs to put between restart markers: near what is wanted, and a divisor of a row's.

    Then no interval goes on in the next row, and a region decodes as one piece.
    """
    columns = -(-width // mcu_width)
    divisors = [count for count in range(-(-wanted // 2), 2 * wanted + 1) if columns % count == 0]
    return min(divisors, key=lambda count: abs(count - wanted), default=wanted)


def _with_restarts(data: bytes, interval: int) -> bytes | None:
    """Return the JPEG with the same coefficients and restart markers; None when jpegtran has any complaint."""
    command = [find_jpegtran(), "-restart", f"{interval}B", "-optimize", "-copy", "none"]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 and done.stdout and not done.stderr else None


def _shows(data: bytes, pixels: Image.Image) -> bool:
    """Tell whether a JPEG decodes to exactly these pixels."""
    with Image.open(io.BytesIO(data)) as image:
        return (
            image.mode == pixels.mode
            and image.size == pixels.size
            and ImageChops.difference(image, pixels).getbbox() is None
        )
