"""Evaluation: images per second of the paper's protocol, with few and with many classes."""

import time
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from groupvit.config import Precision, SegmentationConfig
from groupvit.model import GroupViT
from groupvit.segmentation import Words, label
from groupvit.windows import encode_views
from tests.gpu.card.context import Context
from tests.gpu.card.material import noisy_images
from tests.gpu.card.numbers import contrasting_model

CLASSES = {"21 classes": (20, 0.95), "150 classes": (150, None)}
"""Number of classes without the background, and the background threshold."""
IMAGES_AT_ONCE = 8


def evaluation(context: Context) -> None:
    for classes in CLASSES:
        for precision in ("float32", "bfloat16"):
            name = f"{classes}, {precision}"
            context.report.row(name, partial(_measure, context, name, classes, precision), seconds=5)


def random_words(model: GroupViT, num_classes: int, config: SegmentationConfig) -> Words:
    """Class embeddings of random directions."""
    shape = (num_classes, model.config.embedding_dim)
    embeddings = F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(1)), dim=-1)
    return Words.of(model, embeddings.to(model.logit_scale.device), None, config)


def _measure(context: Context, name: str, classes: str, precision: Precision) -> None:
    device, sizes = context.device, context.sizes
    num_classes, threshold = CLASSES[classes]
    model = contrasting_model(sizes.model).to(device.torch)
    config = SegmentationConfig(
        short_side=sizes.window, window=sizes.window, stride=sizes.window // 2, background_threshold=threshold
    )
    words = random_words(model, num_classes, config)
    images = noisy_images(sizes.images, sizes.image_size)
    seconds = np.zeros(2)
    at_once = min(IMAGES_AT_ONCE, len(images))
    num_windows = 0
    for first in range(-at_once, len(images), at_once):  # the first images once more, before time counts
        block = images[max(first, 0) : max(first, 0) + at_once]
        start = time.perf_counter()
        encoded = encode_views(model, block, config, precision=precision)
        device.wait()
        middle = time.perf_counter()
        for views in encoded:
            label(views, words, sizes.image_size, config, (threshold,))  # waits: it returns arrays
        if first >= 0:
            seconds += (middle - start, time.perf_counter() - middle)
            num_windows += sum(len(view.windows) for views in encoded for view in views)
    values = {
        "images/s": len(images) / seconds.sum(),
        "windows of an image": num_windows / len(images),
        "windows ms": 1e3 * seconds[0] / len(images),
        "label map ms": 1e3 * seconds[1] / len(images),
    }
    context.report.measured(name, {key: float(value) for key, value in values.items()})
