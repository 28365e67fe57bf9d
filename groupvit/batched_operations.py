"""Pillow's image operations on batches on any device, with an argument for each image.

Integers are computed as Pillow computes them, so results are equal. Turning, shearing and moving sample in float32, not
in float64: few pixels differ by 1.

Shapes: N images uint8 [N,3,H,W]; tables uint8 [N,3,256] give the new value for each old one.
"""

import torch
from torch import Tensor

from groupvit.augment import FILL


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace each value of `images` by that of its image's and channel's table."""
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def auto_contrast_tables(images: Tensor) -> Tensor:
    """Stretch the values of each channel to 0 … 255."""
    lowest, highest = (x[..., None].double() for x in torch.aminmax(images.flatten(2), dim=2))
    values = torch.arange(256, dtype=torch.float64, device=images.device)
    scale = torch.full_like(highest, 255) / (highest - lowest)  # 255 / x would be 255 · (1 / x)
    stretched = (values * scale + -lowest * scale).trunc().clamp(0, 255)
    return torch.where(highest > lowest, stretched, values).to(torch.uint8)


def equalize_tables(images: Tensor) -> Tensor:
    """Make the values of each channel equally frequent."""
    values = images.flatten(2).long()
    ones = torch.ones((), dtype=torch.int64, device=images.device).expand_as(values)
    counts = values.new_zeros(*values.shape[:2], 256).scatter_add_(2, values, ones)
    last = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - last) // 255
    before = counts.cumsum(2) - counts
    equalized = (step // 2 + before) // step.clamp(min=1)
    unchanged = torch.arange(256, device=images.device)
    return torch.where(step > 0, equalized.clamp(max=255), unchanged).to(torch.uint8)


def contrast_tables(images: Tensor, factors: Tensor) -> Tensor:
    """Move all values away from the image's mean luma by factors float32 [N], or towards it."""
    luma = _luma(images).flatten(1)
    mean = (2 * luma.sum(1) + luma.shape[1]) // (2 * luma.shape[1])  # rounded
    values = torch.arange(256, device=images.device)
    return blend(mean[:, None], values, factors[:, None])[:, None].expand(-1, 3, -1)


def without_color(images: Tensor) -> Tensor:
    """Return the luma of each pixel in all three channels."""
    return _luma(images).to(torch.uint8)[:, None].expand_as(images)


def smoothed(images: Tensor) -> Tensor:
    """Average each pixel, of weight 5, with its eight neighbours. The outermost pixels are left as they are."""
    x = images.to(torch.int16)
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[..., 1:-1, 1:-1]
    output = images.clone()
    output[..., 1:-1, 1:-1] = (2 * sums + 13) // 26  # rounded
    return output


def blend(first: Tensor, second: Tensor, factors: Tensor) -> Tensor:
    """Return first + factors · (second - first), cut to uint8. Integers of 0 … 255; `factors` are float32.

    Factors below 1 interpolate; those above extrapolate.
    """
    base = first.float()
    return (base + factors * (second.float() - base)).clamp(0, 255).to(torch.uint8)


def transform(images: Tensor, matrices: Tensor) -> Tensor:
    """Sample each image at positions that are affine in the pixel's: bilinear, with `FILL` outside.

    Args:
        images: uint8 [N,3,H,W].
        matrices: float32 [N,6]: a, b, c, d, e, f of x' = a x + b y + c and y' = d x + e y + f, where the centre of the
            first pixel is at 0.5.
    """
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrices[..., None, None].unbind(1)
    y = torch.arange(height, device=images.device).add(0.5)[:, None]
    x = torch.arange(width, device=images.device).add(0.5)
    source_x = a * x + b * y + c
    source_y = d * x + e * y + f
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    left, right, x_share = _neighbours(source_x - 0.5, width)
    upper, lower, y_share = _neighbours(source_y - 0.5, height)
    flat = images.flatten(2)

    def take(rows: Tensor, columns: Tensor) -> Tensor:
        places = (rows * width + columns).flatten(1)[:, None]
        return flat.gather(2, places.expand(-1, 3, -1)).view_as(images).float()

    above = torch.lerp(take(upper, left), take(upper, right), x_share)
    below = torch.lerp(take(lower, left), take(lower, right), x_share)
    sampled = torch.lerp(above, below, y_share).to(torch.uint8)
    fill = torch.cat([torch.full((1, 1, 1), value, dtype=torch.uint8, device=images.device) for value in FILL])
    return torch.where(inside[:, None], sampled, fill)


def _neighbours(positions: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels before and after each position [N,H,W], and the share of the latter [N,1,H,W]."""
    before = positions.floor()
    share = positions - before
    before = before.long()
    return before.clamp(0, size - 1), (before + 1).clamp(0, size - 1), share[:, None]


def _luma(images: Tensor) -> Tensor:
    """Return int32 [N,H,W]."""
    red, green, blue = images.int().unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
