"""What the pixels of a file are, by Pillow: the meaning that every backend reproduces.

RGB, upright (EXIF orientation applied); gray, CMYK, palette and alpha images converted as Pillow converts them, 16-bit
gray scaled to 8 bits (Pillow's own conversion would clip it to white). A crop is one antialiased bilinear resize of a
fractional box: like Pillow's ``resize(box=...)`` it looks beyond the box as far as the filter reaches.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from loaders.bad_samples import MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

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


def open_image(path: str | Path) -> Image.Image:
    """Open a file, reading its header only.

    Raises:
        PixelError: the file is missing, empty, too large or no image of a supported format.
    """
    try:
        return Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PixelError(f"more than {MAX_PIXELS // 1_000_000} megapixels") from error
    except UnidentifiedImageError as error:
        empty = not Path(path).stat().st_size
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
        width, height = image.size
        left, top, right, bottom = _stored_box(window, orientation)
        box = [left * width, top * height, right * width, bottom * height]
        if scaled and image.format in ("JPEG", "MPO"):  # the latter is a JPEG with further pictures behind it
            enlargement = min(box[2] - box[0], box[3] - box[1]) / (2 * resolution)
            factor = next((f for f in (8, 4, 2) if enlargement >= f), 1)
            if factor > 1:
                image.draft(None, (width // factor, height // factor))
                box = [edge / factor for edge in box]
        pixels = to_rgb(_loaded(image))
    # The sums above may leave the image by a rounding error, which Pillow refuses.
    box = [max(0.0, box[0]), max(0.0, box[1]), min(pixels.width, box[2]), min(pixels.height, box[3])]
    resized = pixels.resize((resolution, resolution), Image.Resampling.BILINEAR, box=tuple(box))  # type: ignore[arg-type]
    return np.asarray(upright(resized, orientation))


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


def _stored_box(window: np.ndarray, orientation: int) -> tuple[float, float, float, float]:
    """Turn a window of the upright image into left, top, right, bottom fractions of the stored one."""
    left, top, width, height = (float(v) for v in window)
    right, bottom = left + width, top + height
    if orientation in (2, 3, 7, 6):
        left, right = 1 - right, 1 - left
    if orientation in (3, 4, 7, 8):
        top, bottom = 1 - bottom, 1 - top
    if orientation in (5, 6, 7, 8):
        left, top, right, bottom = top, left, bottom, right
    return left, top, right, bottom
