"""What the pixels of a file are, by Pillow: the meaning that every backend reproduces.

RGB, upright (EXIF orientation applied); gray, CMYK, palette and alpha images converted as Pillow converts them, 16-bit
gray scaled to 8 bits (Pillow's own conversion would clip it to white). A crop is one antialiased bilinear resize of a
fractional box: like Pillow's ``resize(box=...)`` it looks beyond the box as far as the filter reaches.

`load_window` is that in so many words, the oracle of all loaders. `load_into` gives the same to a level, sooner: most
JPEGs are decoded by torchvision, whose decoder returns the same bytes, and windows are resized by our own kernel. What
is a bad file, Pillow alone decides.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg

from kernels.resample import resize_window
from loaders.bad_samples import MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_JPEG = ("JPEG", "MPO")  # the latter is a JPEG with further pictures behind it

# Pillow raises above twice this number and only warns below; the warning would reach the user once for every process.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PixelError(ValueError):
    """A file that cannot be decoded; the message is the reason, without the path."""


def pillow_version() -> str:
    """Return the name and version of the installed Pillow, which may be pillow-simd."""
    import PIL

    return f"{'pillow-simd' if '.post' in PIL.__version__ else 'Pillow'} {PIL.__version__}"


def open_image(source: str | Path | io.BytesIO) -> Image.Image:
    """Open a file, by its path or its content, looking at its header only.

    Raises:
        PixelError: the file is missing, empty, too large or no image of a supported format.
    """
    try:
        return Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PixelError(f"more than {MAX_PIXELS // 1_000_000} megapixels") from error
    except UnidentifiedImageError as error:
        empty = not (len(source.getbuffer()) if isinstance(source, io.BytesIO) else Path(source).stat().st_size)
        raise PixelError("the file is empty" if empty else "not a JPEG, PNG, WebP or BMP image") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsing trips over
        raise PixelError(_reason(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert decoded pixels to 8-bit RGB."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return image.convert("RGB")


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or it is invalid."""
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in _UPRIGHT else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Undo an EXIF orientation."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def decode(path: str | Path) -> Image.Image:
    """Decode a whole file to upright RGB.

    Raises:
        PixelError: Pillow refuses the file.
    """
    with open_image(path) as image:
        loaded = _loaded(image)  # first: a PNG's orientation may stand behind its pixels, and Pillow reads up to it
        return upright(to_rgb(loaded), orientation_of(image))


def load_window(
    path: str | Path, window: np.ndarray, resolution: int, orientation: int = 1, scaled: bool = True
) -> np.ndarray:
    """Decode a file and resize a window of it.

    Args:
        window: float64 (4,): left, top, width, height in fractions of the upright image.
        resolution: side of the result, pixels.
        orientation: EXIF orientation of the file.
        scaled: decode a JPEG at a half, a quarter or an eighth where the window stays at least twice as large as the
            result; this moves pixels by 0.4 of 255 on average and saves a quarter of the time.

    Returns:
        uint8 (resolution, resolution, 3).

    Raises:
        PixelError: Pillow refuses the file.
    """
    with open_image(path) as image:
        box = _stored_box(window, orientation, image.size)
        factor = _draft_factor(image, box, resolution) if scaled else 1
        pixels = _loaded_at(image, factor)
    resized = pixels.resize(
        (resolution, resolution), Image.Resampling.BILINEAR, box=_box_within(pixels.size, box, factor)
    )
    return np.asarray(upright(resized, orientation))


def load_into(path: str | Path, window: np.ndarray, out: np.ndarray, flip: bool = False, orientation: int = 1) -> None:
    """Decode a file and resize a window of it into given memory: `load_window`, within a level, in less time.

    Args:
        window: float64 (4,): left, top, width, height in fractions of the upright image.
        out: uint8 (resolution, resolution, 3) to fill, of any strides.
        flip: mirror the result, left to right.
        orientation: EXIF orientation of the file.

    Raises:
        PixelError: Pillow refuses the file.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise PixelError(_reason(error)) from error
    load_bytes_into(data, window, out, flip, orientation)


def load_bytes_into(
    data: np.ndarray, window: np.ndarray, out: np.ndarray, flip: bool = False, orientation: int = 1
) -> None:
    """Do what `load_into` does, for a file that has been read: uint8 bytes.

    Raises:
        PixelError: Pillow refuses it.
    """
    with open_image(io.BytesIO(data.data)) as image:
        box = _stored_box(window, orientation, image.size)
        factor = _draft_factor(image, box, len(out))
        # Pillow alone decodes to a fraction of the size, which saves more than torchvision's decoder does.
        pixels = _decoded_by_torchvision(image, data) if factor == 1 else None
        if pixels is None:
            pixels = np.ascontiguousarray(_loaded_at(image, factor))
    left, top, right, bottom = _box_within((pixels.shape[1], pixels.shape[0]), box, factor)
    upright_out = out[:, ::-1] if flip else out
    resize_window(pixels, left, top, right - left, bottom - top, _as_stored(upright_out, orientation))


def _decoded_by_torchvision(image: Image.Image, data: np.ndarray) -> np.ndarray | None:
    """Decode a JPEG of three components or one; None for other files and for what is to be judged by Pillow.

    Args:
        image: opened by Pillow, not yet decoded.
        data: uint8, the whole file.

    Returns:
        uint8 (H, W, 3), C-contiguous, byte for byte what Pillow gives.
    """
    whole = image.format in _JPEG and image.mode in ("RGB", "L") and data[-2] == 0xFF and data[-1] == 0xD9
    if not whole:  # it may still be fine, with something behind the picture
        return None
    try:
        planes = decode_jpeg(torch.from_numpy(data), mode=ImageReadMode.RGB)
    except RuntimeError:
        return None
    return np.ascontiguousarray(planes.permute(1, 2, 0).numpy())  # no copy: it is so already


def _draft_factor(image: Image.Image, box: tuple[float, ...], resolution: int) -> int:
    """Return by what to divide the size of a JPEG in decoding: the window stays at least twice the resolution."""
    if image.format not in _JPEG:
        return 1
    enlargement = min(box[2] - box[0], box[3] - box[1]) / (2 * resolution)
    return next((factor for factor in (8, 4, 2) if enlargement >= factor), 1)


def _loaded_at(image: Image.Image, factor: int) -> Image.Image:
    """Decode an opened image, at a fraction of its size, to 8-bit RGB."""
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))
    return to_rgb(_loaded(image))


def _loaded(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, IndexError and others
        raise PixelError(_reason(error)) from error
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _stored_box(window: np.ndarray, orientation: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Turn a window of the upright image into left, top, right, bottom pixels of the stored one."""
    left, top, width, height = (float(v) for v in window)
    right, bottom = left + width, top + height
    if orientation in (2, 3, 7, 6):
        left, right = 1 - right, 1 - left
    if orientation in (3, 4, 7, 8):
        top, bottom = 1 - bottom, 1 - top
    if orientation in (5, 6, 7, 8):
        left, top, right, bottom = top, left, bottom, right
    return left * size[0], top * size[1], right * size[0], bottom * size[1]


def _box_within(
    size: tuple[int, int], box: tuple[float, float, float, float], factor: int
) -> tuple[float, float, float, float]:
    """Divide a box by the factor and keep it within the decoded image.

    Sums of fractions may leave the image by a rounding error, which Pillow refuses.
    """
    left, top, right, bottom = (edge / factor for edge in box)
    return max(0.0, left), max(0.0, top), min(size[0], right), min(size[1], bottom)


def _as_stored(out: np.ndarray, orientation: int) -> np.ndarray:
    """Return a view of (rows, columns, 3) through which what is written as stored stands upright."""
    if orientation in (5, 6, 7, 8):
        out = out.swapaxes(0, 1)
    if orientation in (2, 3, 7, 8):
        out = out[:, ::-1]
    if orientation in (3, 4, 6, 7):
        out = out[::-1]
    return out
