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


def affine(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Resample bilinearly along an affine map from result to source.

    Args:
        parameters: a, b, c, d, e, f and the fill's red, green and blue (0 to 255). The result at (x, y) is the source
            at (a x + b y + c, d x + e y + f), in pixels from the upper left corner, pixel centers at halves. Outside,
            the source has the fill's color.
    """
    height, width = images.shape[2:]
    a, b, c, d, e, f = parameters[:, :6, None, None].unbind(dim=1)
    fill = parameters[:, 6:9, None, None]
    x = torch.arange(width, device=images.device) + 0.5
    y = (torch.arange(height, device=images.device) + 0.5)[:, None]
    source_x = (a * x + b * y).add_(c).mul_(2 / width).sub_(1)
    source_y = (d * x + e * y).add_(f).mul_(2 / height).sub_(1)
    grid = torch.stack((source_x, source_y), dim=-1)
    # Zero outside and the fill as origin is the fill outside.
    sampled = functional.grid_sample(images - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _to_bytes(sampled.add_(fill))


def shift(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Move images by whole pixels; what comes in at the border is the image reflected about its outermost pixels.

    Args:
        parameters: pixels to the right and pixels down, less than the image's size.
    """
    pixels = images.permute(0, 2, 3, 1)
    count, height, width, _ = pixels.shape
    moves = parameters.to(torch.int64)

    def source(length: int, move: torch.Tensor) -> torch.Tensor:
        position = (torch.arange(length, device=images.device) - move[:, None]).abs()
        return torch.minimum(position, 2 * (length - 1) - position)

    image = torch.arange(count, device=images.device)[:, None, None]
    moved = pixels[image, source(height, moves[:, 1])[:, :, None], source(width, moves[:, 0])[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def enhance(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast and saturation, in this order, with one rounding at the end.

    Each blends the image with black, with its mean luma or with its luma (as Pillow's ImageEnhance).

    Args:
        parameters: factors of brightness, contrast and saturation; 1 changes nothing.
    """
    brightness, contrast, saturation = (_column(parameters, i) for i in range(3))
    luma = _luma(images)
    mean = luma.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64) / (images.shape[2] * images.shape[3])
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
