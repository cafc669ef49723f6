"""Image operations for whole batches, each image with parameters of its own.

Every operation takes uint8 images (n, 3, H, W) in either layout and float32 parameters (n, k) on the same device, and
returns new uint8 images of the same shape. An image's result depends on its own pixels and parameters only, to the
last bit: sums over pixels are sums of integers, and multiplications and additions are separate elementwise steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional


def _column(parameters: torch.Tensor, index: int) -> torch.Tensor:
    """Return one parameter of each image, broadcastable over (n, 3, H, W)."""
    return parameters[:, index, None, None, None]


def _to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Round floating-point images to uint8, in place where possible."""
    return images.round_().clamp_(0, 255).to(torch.uint8)


def _luma(images: torch.Tensor) -> torch.Tensor:
    """Return the ITU-R 601 luma as whole numbers: float32 (n, 1, H, W), as Pillow's mode "L"."""
    red, green, blue = images.split(1, dim=1)
    return (red * 0.299).add_(green * 0.587).add_(blue * 0.114).round_()


def _mean(luma: torch.Tensor) -> torch.Tensor:
    """Return each image's mean of whole numbers, float32 (n, 1, 1, 1)."""
    return luma.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64) / (luma.shape[2] * luma.shape[3])


def affine(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Resample bilinearly along an affine map from result to source.

    Args:
        parameters: a, b, c, d, e, f and the fill's red, green and blue (0 to 255). The result at (x, y) is the source
            at (a x + b y + c, d x + e y + f), in pixels from the upper left corner, pixel centers at halves. Outside,
            the source has the fill's color.
    """
    return _affine(images, parameters, "bilinear")


def affine_nearest(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Take the nearest pixel along an affine map; parameters as those of `affine`."""
    return _affine(images, parameters, "nearest")


def _affine(images: torch.Tensor, parameters: torch.Tensor, mode: str) -> torch.Tensor:
    height, width = images.shape[2:]
    a, b, c, d, e, f = parameters[:, :6, None, None].unbind(dim=1)
    fill = parameters[:, 6:9, None, None]
    x = torch.arange(width, device=images.device) + 0.5
    y = (torch.arange(height, device=images.device) + 0.5)[:, None]
    source_x = (a * x + b * y).add_(c).mul_(2 / width).sub_(1)
    source_y = (d * x + e * y).add_(f).mul_(2 / height).sub_(1)
    grid = torch.stack((source_x, source_y), dim=-1)
    # Zero outside and the fill as origin is the fill outside.
    sampled = functional.grid_sample(images - fill, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return _to_bytes(sampled.add_(fill))


def shift(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Move images by whole pixels; what comes in at the border is the image reflected about its outermost pixels.

    Args:
        parameters: pixels to the right and pixels down, less than the image's size.
    """
    height, width = images.shape[2:]

    def reflected(positions: torch.Tensor, length: int) -> torch.Tensor:
        positions = positions.abs()
        return torch.minimum(positions, 2 * (length - 1) - positions)

    rows, columns = _sources(images, parameters)
    return _gathered(images, reflected(rows, height), reflected(columns, width))


def shift_filled(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Move images by whole pixels; what comes in at the border is a color.

    Args:
        parameters: pixels to the right and pixels down, and the color's red, green and blue (0 to 255).
    """
    height, width = images.shape[2:]
    rows, columns = _sources(images, parameters)
    moved = _gathered(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None]
    return torch.where(inside, moved, parameters[:, 2:5, None, None].to(torch.uint8))


def _sources(images: torch.Tensor, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows (n, H) and columns (n, W) that pixels come from, int64, which may lie outside the image."""
    height, width = images.shape[2:]
    moves = parameters[:, :2, None].to(torch.int64)
    return (
        torch.arange(height, device=images.device) - moves[:, 1],
        torch.arange(width, device=images.device) - moves[:, 0],
    )


def _gathered(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return images of the pixels at rows (n, H) and columns (n, W) of each."""
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def flip_horizontally(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Mirror left to right. No parameters."""
    return images.flip(3)


def flip_vertically(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Mirror top to bottom. No parameters."""
    return images.flip(2)


def transpose(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Exchange rows and columns of squares, as a view. No parameters."""
    return images.transpose(2, 3)


def erase(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Fill a rectangle with a color.

    Args:
        parameters: left, top, right and bottom in pixels, right and bottom excluded, and the color's red, green and
            blue (0 to 255), all whole numbers. The rectangle may be empty.
    """
    left, top, right, bottom = (_column(parameters, i) for i in range(4))
    x = torch.arange(images.shape[3], device=images.device)
    y = torch.arange(images.shape[2], device=images.device)[:, None]
    inside = ((y >= top) & (y < bottom)) & ((x >= left) & (x < right))
    return torch.where(inside, parameters[:, 4:7, None, None].to(torch.uint8), images)


def _cut(images: torch.Tensor) -> torch.Tensor:
    """Cut floating-point images off to uint8, in place where possible, as Pillow and torchvision do after a blend."""
    return images.clamp_(0, 255).to(torch.uint8)


def brightness(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Blend with black; fractions are cut off.

    Args:
        parameters: factor; 1 changes nothing.
    """
    return _cut(images * _column(parameters, 0))


def contrast(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Blend with the image's mean luma; fractions are cut off.

    Args:
        parameters: factor; 1 changes nothing.
    """
    factor = _column(parameters, 0)
    return _cut((images * factor).add_(_mean(_luma(images)) * (1 - factor)))


def saturation(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Blend with the luma; fractions are cut off.

    Args:
        parameters: factor; 1 changes nothing.
    """
    factor = _column(parameters, 0)
    return _cut((images * factor).add_(_luma(images).mul_(1 - factor)))


def enhance(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast and saturation, in this order, with one rounding at the end.

    Each blends the image with black, with its mean luma or with its luma (as Pillow's ImageEnhance).

    Args:
        parameters: factors of brightness, contrast and saturation; 1 changes nothing.
    """
    brightness, contrast, saturation = (_column(parameters, i) for i in range(3))
    luma = _luma(images)
    mean = _mean(luma)
    gain = brightness * contrast
    blended = images * (gain * saturation)
    blended.add_(luma.mul_(gain * (1 - saturation)))
    return _to_bytes(blended.add_(mean * (brightness * (1 - contrast))))


def hue(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Turn the hue in the HSV cylinder.

    Args:
        parameters: turn as a fraction of the circle, -0.5 to 0.5.
    """
    values = images.to(torch.float32)
    red, green, blue = values.split(1, dim=1)
    low, high = values.aminmax(dim=1, keepdim=True)
    chroma = high - low
    divisor = chroma.clamp(min=1)  # a gray pixel has hue 0
    sector = torch.where(
        high == red,
        ((green - blue) / divisor).remainder_(6),
        torch.where(high == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sector.add_(_column(parameters, 0) * 6)
    turned = torch.empty_like(values)
    for channel, offset in enumerate((5, 3, 1)):
        distance = (sector + offset).remainder_(6)
        weight = torch.minimum(distance, 4 - distance).clamp_(0, 1)
        turned[:, channel : channel + 1] = high - chroma * weight
    return _to_bytes(turned)


def sharpness(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Blend with a smoothed image (3 x 3, center 5/13, the others 1/13); the outermost pixels stay.

    Args:
        parameters: factor: 0 smooths, 1 changes nothing, more sharpens.
    """
    values = images.to(torch.float32)
    if min(values.shape[2:]) < 3:
        return images.clone()
    columns = values[..., :-2] + values[..., 1:-1] + values[..., 2:]
    smooth = columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:]
    inner = values[:, :, 1:-1, 1:-1]
    smooth = smooth.add_(inner * 4).div_(13).round_()
    inner.add_(smooth.sub_(inner).mul_(1 - _column(parameters, 0)))
    return _to_bytes(values)


def invert(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Replace each value by its distance from 255. No parameters."""
    return ~images


def posterize(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Keep the highest bits.

    Args:
        parameters: the mask of the bits to keep, 0 to 255.
    """
    return images & _column(parameters, 0).to(torch.uint8)


def solarize(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Invert the values from a threshold up.

    Args:
        parameters: threshold, a whole number from 0 to 255.
    """
    return torch.where(images >= _column(parameters, 0).to(torch.uint8), ~images, images)


def autocontrast(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to the full range; a channel of one value stays. No parameters."""
    low = images.amin(dim=(2, 3), keepdim=True).to(torch.float32)
    spread = images.amax(dim=(2, 3), keepdim=True) - low
    flat = spread == 0
    low, spread = low.masked_fill_(flat, 0), spread.masked_fill_(flat, 255)
    return _to_bytes((images - low).mul_(255 / spread))


def equalize(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Equalize each channel's histogram as Pillow's ImageOps.equalize does. No parameters."""
    count, channels, height, width = images.shape
    values = images.reshape(count, channels, height * width).to(torch.int64)
    histogram = torch.zeros(count, channels, 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, values, torch.ones_like(values[:, :, :1]).expand_as(values))
    below = histogram.cumsum(dim=2) - histogram
    highest = values.amax(dim=2, keepdim=True)
    step = below.gather(2, highest) // 255  # all pixels but those of the highest value, over 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table)
    return table.gather(2, values).to(torch.uint8).view(count, channels, height, width)


def blur(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Convolve rows and columns with a symmetric kernel, the image reflected about its outermost pixels.

    Args:
        parameters: the kernel's weights at distance 0, 1, 2, ... pixels, fewer than the image's sides.
    """
    radius = parameters.shape[1] - 1
    values = functional.pad(images.to(torch.float32), (radius,) * 4, mode="reflect")
    for dim in (2, 3):
        length = images.shape[dim]
        blurred = values.narrow(dim, radius, length) * _column(parameters, 0)
        for distance in range(1, radius + 1):
            pair = values.narrow(dim, radius - distance, length) + values.narrow(dim, radius + distance, length)
            blurred.add_(pair.mul_(_column(parameters, distance)))
        values = blurred
    return _to_bytes(values)


def grayscale(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Replace every channel by the luma. No parameters."""
    return _luma(images).to(torch.uint8).expand_as(images)
