"""Second part of the training transform: normalises a batch on the training device, and erases its rectangles.

Images travel and wait as bytes, and become floats when it is their turn: a batch of bytes takes a quarter of the
memory. Nothing here makes the host wait for a GPU.

Shapes: B images, E erased values of the whole batch.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteImages:
    """Augmented images of a batch, before normalisation. All tensors are on one device."""

    pixels: Tensor
    """uint8 [B,3,H,W]."""
    erased: Tensor
    """int64 [E]: places of the erased values in the flattened batch."""
    noise: Tensor
    """float32 [E]: what takes their place."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "ByteImages":
        """Apply a function to each tensor, for example to copy it to another device."""
        return ByteImages(pixels=function(self.pixels), erased=function(self.erased), noise=function(self.noise))

    def finished(self) -> Tensor:
        """Normalise and erase -> float32 [B,3,H,W]."""
        output = normalize(self.pixels)
        output.view(-1).index_copy_(0, self.erased, self.noise)
        return output


def with_erasing(pixels: Tensor, boxes: Tensor, noise_seeds: Tensor) -> ByteImages:
    """Draw the noise of random erasing. It is drawn on the CPU, so that it is the same on every device.

    Args:
        pixels: uint8 [B,3,H,W], on the CPU.
        boxes: Integers [B,4], as in `groupvit.transforms.TrainSample`.
        noise_seeds: int64 [B], as in `TrainSample`.
    """
    _, channels, height, width = pixels.shape
    generator = torch.Generator()
    offsets = torch.arange(channels)[:, None, None] * (height * width)
    erased, noise = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
    for index, ((top, left, rows, columns), seed) in enumerate(zip(boxes.tolist(), noise_seeds.tolist(), strict=True)):
        if rows:
            corner = index * channels * height * width + top * width + left
            places = offsets + (torch.arange(rows)[:, None] * width + torch.arange(columns)) + corner
            erased.append(places.flatten())
            noise.append(torch.randn(places.numel(), generator=generator.manual_seed(seed)))
    return ByteImages(pixels=pixels, erased=torch.cat(erased), noise=torch.cat(noise))


def normalize(images: Tensor) -> Tensor:
    """Normalise images uint8 [...,3,H,W] -> float32 of the same shape, by ImageNet's mean and standard deviation."""
    mean, std = (_channels(values, images.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    largest = torch.full((), 255.0, device=images.device)  # a GPU would multiply by the rounded inverse of a plain 255
    return images.to(torch.float32).div_(largest).sub_(mean).div_(std)


def to_tensor(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Pixels uint8 [H,W,3] → normalised float32 [3,H,W]."""
    return normalize(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))


def _channels(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Make float32 [3,1,1] on the device itself: the host would wait for a copy."""
    return torch.cat([torch.full((1, 1, 1), value, device=device) for value in values])
