"""Functions that usual mistakes put in place of those of the protocol: how an image is prepared and encoded, the words,
the counting of pixels, and the mean.

Their types are `Prepare` and `Encode` of `groupvit.windows`, and `Count` and `Average` of `variants.py`.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from groupvit.config import SegmentationConfig
from groupvit.finishing import IMAGENET_MEAN, IMAGENET_STD, to_tensor
from groupvit.grouping import hard_assignment
from groupvit.image_encoder import ImageFeatures
from groupvit.metrics import IGNORE_INDEX
from groupvit.model import GroupViT, clamped_scale
from groupvit.noise import generator_noise
from groupvit.resizing import resize_bilinear
from groupvit.segmentation import Words
from groupvit.windows import resized_image
from pipelines.evaluation.variants import class_iou, count_pixels, mean_over_classes, mean_without_nan


def squeezed(
    image: NDArray[np.uint8], config: SegmentationConfig, patch_size: int, scale: float, *, side: int
) -> Tensor:
    """Resizes to a square. Its side is rounded to a multiple of the patch size."""
    new = max(round(scale * side / patch_size), 1) * patch_size
    return to_tensor(resize_bilinear(image, (new, new), antialias=config.antialias))


def bicubic(image: NDArray[np.uint8], config: SegmentationConfig, patch_size: int, scale: float) -> Tensor:
    """Resizes to the protocol's size by bicubic interpolation."""
    size = resized_image(image, config, patch_size, scale).shape[-2:]
    planes = torch.tensor(image).permute(2, 0, 1)[None].float()
    resized = F.interpolate(planes, size=size, mode="bicubic", align_corners=False, antialias=config.antialias)
    return to_tensor(resized[0].clamp_(0, 255).round_().to(torch.uint8).permute(1, 2, 0).numpy())


def bgr(image: NDArray[np.uint8], config: SegmentationConfig, patch_size: int, scale: float) -> Tensor:
    """Reads the channels in the order of OpenCV."""
    return resized_image(np.ascontiguousarray(image[..., ::-1]), config, patch_size, scale)


def normalised(
    image: NDArray[np.uint8],
    config: SegmentationConfig,
    patch_size: int,
    scale: float,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Tensor:
    """Normalises by another mean and standard deviation."""
    old_mean, old_std, new_mean, new_std = (
        torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD, mean, std)
    )
    pixels = resized_image(image, config, patch_size, scale)
    return (pixels * old_std + old_mean - new_mean) / new_std


def without_scale(words: Words) -> Words:
    return replace(words, logit_scale=torch.zeros_like(words.logit_scale))


def scaled_twice(words: Words) -> Words:
    scale = clamped_scale(words.logit_scale.detach())
    background = None if words.background is None else words.background * scale
    return replace(words, classes=words.classes * scale, background=background)


def with_hard_assignments(model: GroupViT, pixels: Tensor) -> ImageFeatures:
    """Makes the assignments hard before they are multiplied."""
    features = model.image_encoder(pixels)
    hard = tuple(hard_assignment(logits).log() for logits in features.assignment_logits)
    return replace(features, assignment_logits=hard)


def with_noise(model: GroupViT, pixels: Tensor) -> ImageFeatures:
    """Runs the tower with the noise of training, drawn from a fixed seed."""
    patch_size = model.config.image.patch_size
    grid = (pixels.shape[-2] // patch_size, pixels.shape[-1] // patch_size)
    noise = model.image_encoder.draw_noise(len(pixels), grid, generator_noise(0, pixels.device))
    return model.image_encoder(pixels, noise)


def ignored_as_errors(truth: NDArray[np.uint8], labels: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """Counts what is predicted on ignored pixels, too."""
    counts = count_pixels(truth, labels, num_classes)
    counts[2] += np.bincount(labels[truth == IGNORE_INDEX], minlength=num_classes)
    return counts


def ignored_as_background(truth: NDArray[np.uint8], labels: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """Takes ignored pixels for background."""
    return count_pixels(np.where(truth == IGNORE_INDEX, np.uint8(0), truth), labels, num_classes)


def mean_over_images(counts: NDArray[np.int64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Averages the mIoU of each image. Images without a counted pixel are left out."""
    of_image = mean_without_nan(class_iou(counts))
    known = counts[:, 1].any(axis=-1)
    return (times[:, known] @ of_image[known]) / times[:, known].sum(axis=-1)


def mean_without_background(counts: NDArray[np.int64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Averages over all classes but the background."""
    return mean_over_classes(counts[..., 1:], times)
