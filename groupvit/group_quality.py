"""How good the groups of an image are, without words: labelled by the truth, and how many of them are used."""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from groupvit.label_maps import combined_hard, decide, pixel_groups
from groupvit.metrics import GroupUsage, best_classes, group_usage
from groupvit.windows import View


@torch.inference_mode()
def oracle(view: View, truth: NDArray[np.uint8], num_classes: int) -> NDArray[np.uint8]:
    """Label the groups of an image as well as possible, by the truth [H, W] (paper table C.3): uint8 [H, W].

    Each group of a window gets the true class with which its pixels have the highest IoU in the window. Where windows
    overlap, the mean decides. Errors that remain are errors of the masks, not of their classification.
    """
    rows, columns = (
        ((np.arange(target) + 0.5) * source / target).astype(np.int64)
        for source, target in zip(truth.shape, view.size, strict=True)
    )
    seen = truth[rows][:, columns]  # nearest labels at the view's size
    groups = [pixel_groups(window) for window in view.windows]
    layers = []
    for window, of_pixel in zip(view.windows, groups, strict=True):
        top, bottom, left, right = window.box
        num_groups = len(window.group_maps[-1])
        best = best_classes(of_pixel.cpu().numpy(), seen[top:bottom, left:right], num_groups, num_classes)
        layers.append(torch.nn.functional.one_hot(torch.from_numpy(best), num_classes).T.float().to(of_pixel.device))
    deciding = partial(decide, num_classes=num_classes, thresholds=(None,))
    height, width = truth.shape
    return combined_hard(view, groups, layers, (height, width), deciding)[0].cpu().numpy()


def usage(view: View) -> list[GroupUsage]:
    """Measure how an image uses the groups of each stage: means over its windows."""
    stages = zip(*(window.group_maps for window in view.windows), strict=True)
    return [
        GroupUsage.mean([group_usage(of_window.flatten(1).cpu().numpy()) for of_window in stage]) for stage in stages
    ]
