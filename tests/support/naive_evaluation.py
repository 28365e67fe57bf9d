"""mIoU of the paper's protocol and of mistakes in it, in plain PyTorch.

It uses no settings, windows, scores, masks or counts of ours. From this repository come only the two towers, the
tokeniser, and the noise of training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from groupvit.model import GroupViT
from groupvit.noise import generator_noise
from groupvit.tokenizer import Tokenizer

IGNORED = 255


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The protocol at a smaller size. A mistake changes one of these."""

    short: int = 128
    square: int | None = None
    """Side to which images are squeezed."""
    mode: str = "bilinear"
    antialias: bool = False
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    is_bgr: bool = False
    templates: tuple[str, ...] = ("a photo of a {}.",)
    window: int | None = 128
    stride: int = 64
    threshold: float = 0.7
    keeps_best_group: bool = True
    """Whether the window's most certain group is never background."""
    background_word: str | None = None
    """Word of the background, which then competes in place of the threshold."""
    top: int | None = 5
    scale: float | None = None
    """Factor of the cosines. None: the model's."""
    soft: bool = False
    """Whether a pixel has the mean of the groups' scores."""
    hard_assignments: bool = False
    noise: bool = False
    resizes_labels: bool = False
    ignored: str = "left out"
    over_images: bool = False
    skips_background: bool = False


def naive_miou(
    model: GroupViT, images: Sequence[tuple[np.ndarray, np.ndarray]], names: Sequence[str], rules: Rules
) -> float:
    """In percent. `images`: RGB uint8 [H, W, 3] and labels [H, W]; `names`: of label 1 and on."""
    words = [*names, *([rules.background_word] if rules.background_word else [])]
    texts = _embed(model, words, rules.templates)
    counts = []
    for rgb, truth in images:
        scores = _scores(model, rgb, texts, len(names), rules)
        if rules.resizes_labels:
            rows, columns = (
                ((np.arange(new) + 0.5) * old / new).astype(int)
                for old, new in zip(truth.shape, scores.shape[1:], strict=True)
            )
            truth = truth[rows][:, columns]
        resized = F.interpolate(scores[None], size=truth.shape, mode="bilinear", align_corners=False)[0]
        counts.append(_counts(truth, resized.argmax(dim=0).numpy(), len(names) + 1, rules))
    if rules.over_images:
        return float(np.mean([_mean_iou(of_image, rules) for of_image in counts]))
    return _mean_iou(np.sum(counts, axis=0), rules)


def _embed(model: GroupViT, words: Sequence[str], templates: Sequence[str]) -> Tensor:
    tokenize, rows = Tokenizer(), []
    for word in words:
        ids = tokenize([template.replace("{}", word) for template in templates], model.config.text.context_length)
        rows.append(F.normalize(model.encode_text(torch.from_numpy(ids).long()).mean(dim=0), dim=0))
    return torch.stack(rows)


def _pixels(rgb: np.ndarray, rules: Rules, patch: int) -> Tensor:
    """[3, H, W], resized and normalised."""
    height, width = rgb.shape[:2]
    if rules.square is not None:
        size = (rules.square, rules.square)
    else:
        factor, unit = rules.short / min(height, width), 1
        if rules.window is None or rules.short < rules.window:
            unit = patch
        size = tuple(unit * math.floor(side * factor / unit + 0.5) for side in (height, width))
    image = torch.from_numpy(rgb[..., ::-1].copy() if rules.is_bgr else rgb).permute(2, 0, 1).float()
    if rules.antialias:
        resized = F.interpolate(image[None].byte(), size=size, mode=rules.mode, antialias=True)[0].float()
    else:
        resized = F.interpolate(image[None], size=size, mode=rules.mode, align_corners=False)[0]
    values = resized.clamp(0, 255).round() / 255
    return (values - torch.tensor(rules.mean)[:, None, None]) / torch.tensor(rules.std)[:, None, None]


def _starts(length: int, window: int, stride: int) -> list[int]:
    if length <= window:
        return [0]
    count = math.ceil((length - window) / stride) + 1
    return [min(index * stride, length - window) for index in range(count)]


def _scores(model: GroupViT, rgb: np.ndarray, texts: Tensor, num_names: int, rules: Rules) -> Tensor:
    """Scores of the background and the classes at the model's size, averaged over windows: [C + 1, H, W]."""
    patch = model.config.image.patch_size
    pixels = _pixels(rgb, rules, patch)
    height, width = pixels.shape[1:]
    side = max(height, width) if rules.window is None else rules.window
    places = [(top, left) for top in _starts(height, side, rules.stride) for left in _starts(width, side, rules.stride)]
    crops = torch.stack([pixels[:, top : top + side, left : left + side] for top, left in places])
    noise, grid = None, (crops.shape[2] // patch, crops.shape[3] // patch)
    if rules.noise:
        noise = model.image_encoder.draw_noise(len(crops), grid, generator_noise(0, crops.device))
    features = model.image_encoder(crops, noise)
    embedding = F.normalize(model.image_projector(features.pooled), dim=-1)
    segments = F.normalize(model.image_projector(features.segment_tokens), dim=-1)
    scale = float(model.logit_scale.exp()) if rules.scale is None else rules.scale
    total, times = torch.zeros(num_names + 1, height, width), torch.zeros(height, width)
    for number, (top, left) in enumerate(places):
        owners = None
        for logits in features.assignment_logits:
            shares = logits[number].softmax(dim=0)
            if rules.hard_assignments:
                shares = F.one_hot(shares.argmax(dim=0), len(shares)).T.float()
            owners = shares if owners is None else shares @ owners
        assert owners is not None
        maps = F.interpolate(owners.reshape(1, -1, *grid), size=crops.shape[2:], mode="bilinear", align_corners=False)[
            0
        ]
        if not rules.soft:
            maps = F.one_hot(maps.argmax(dim=0), len(maps)).permute(2, 0, 1).float()
        logits = scale * segments[number] @ texts.T
        of_group = logits.softmax(dim=1)
        if rules.top is not None:
            best = (embedding[number] @ texts.T).topk(rules.top).indices
            gated = torch.zeros_like(of_group)
            gated[:, best] = logits[:, best].softmax(dim=1)
            of_group = of_group * gated
        classes = torch.einsum("gc,ghw->chw", of_group[:, :num_names], maps)
        if rules.background_word is not None:
            background = torch.einsum("g,ghw->hw", of_group[:, num_names], maps)
        elif rules.keeps_best_group:
            limit = min(rules.threshold, float(of_group.max()))
            background = (classes.max(dim=0).values < limit).float()
        else:
            background = torch.full(crops.shape[2:], rules.threshold)
        bottom, right = top + crops.shape[2], left + crops.shape[3]
        total[:, top:bottom, left:right] += torch.cat([background[None], classes])
        times[top:bottom, left:right] += 1
    return total / times


def _counts(truth: np.ndarray, labels: np.ndarray, num_classes: int, rules: Rules) -> np.ndarray:
    """Intersection and union of each class, [2, C]."""
    if rules.ignored == "as background":
        truth = np.where(truth == IGNORED, 0, truth)
    counted = np.ones_like(truth, dtype=bool) if rules.ignored == "as errors" else truth != IGNORED
    both = [((truth == label) & (labels == label)).sum() for label in range(num_classes)]
    either = [(((truth == label) | (labels == label)) & counted).sum() for label in range(num_classes)]
    return np.array([both, either])


def _mean_iou(counts: np.ndarray, rules: Rules) -> float:
    both, either = counts[:, 1:] if rules.skips_background else counts
    return float(100 * np.mean(both[either > 0] / either[either > 0]))
