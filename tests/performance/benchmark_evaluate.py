"""Speed of scoring images beside a straightforward sliding window, with the same weights.

    python tests/performance/benchmark_evaluate.py [voc21 ade20k ...] [--threads 1] [--images 4] [--repeats 3] [--json]

The other side does what the protocol says, as it is usually written: one window at a time, the image tower run twice
(once for the groups' masks, once for their embeddings), every class at every pixel as floats, which are averaged,
resized and compared. Its tower is transformers' GroupViT as it is shipped; `--own-tower` gives it ours, which shows
what comes from the way windows are handled alone. The paper's protocol at full size, random weights, random images as
large as most of the benchmark's. Turns alternate; the ratio is the median over turns. The masks are compared.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GroupViTConfig, GroupViTModel

from groupvit.config import ModelConfig, Precision, SegmentationConfig
from groupvit.finishing import to_tensor
from groupvit.interop.official import to_hugging_face
from groupvit.model import GroupViT
from groupvit.resizing import resize_short_side, windows
from groupvit.segmentation import Words, label
from groupvit.windows import encode_views
from tests.performance.machine import machine
from tests.performance.report import report

BAR = 3.0
BENCHMARKS = {
    "voc21": (20, 0.95, (375, 500)),
    "context60": (59, 0.35, (375, 500)),
    "coco-object": (80, 0.95, (480, 640)),
    "coco-stuff": (171, None, (480, 640)),
    "cityscapes": (19, None, (1024, 2048)),
    "ade20k": (150, None, (512, 683)),
}
"""Name → classes without the background, background threshold, height and width of most images."""

Tower = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Window [1, 3, H, W] → segment embeddings [G, D] and the embedding of the whole window [D]."""
Masks = Callable[[Tensor], Tensor]
"""Window → the share of each image token in each final group, [G, h, w]."""


def noisy_picture(seed: int, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    side = -(-height // 6)
    blocks = np.random.default_rng(seed).integers(0, 255, (6, -(-width // side), 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(side, axis=0).repeat(side, axis=1)[:height, :width])


def our_model() -> GroupViT:
    """Random weights, but larger ones in the tower, so that groups and classes differ."""
    torch.manual_seed(0)
    model = GroupViT(ModelConfig()).eval()
    with torch.no_grad():
        for parameter in model.image_encoder.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2)
    return model


def our_tower(model: GroupViT) -> tuple[Masks, Tower]:
    def masks(window: Tensor) -> Tensor:
        encoding = model.encode_image(window)
        first, second = encoding.soft_assignments
        return (second @ first)[0].unflatten(-1, encoding.features.grid)

    def tower(window: Tensor) -> tuple[Tensor, Tensor]:
        encoding = model.encode_image(window)
        return encoding.segment_embeddings[0], encoding.embedding[0]

    return masks, tower


def their_tower(model: GroupViT) -> tuple[Masks, Tower]:
    config, weights = to_hugging_face(model)
    positions = "vision_model.embeddings.position_embeddings"
    side = 448 // 16  # theirs takes images of one size, so its positions are resized beforehand
    table = weights[positions].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    resized = F.interpolate(table, size=(side, side), mode="bicubic", align_corners=False)
    weights[positions] = resized.flatten(2).transpose(1, 2)
    config["vision_config"]["image_size"] = 448
    theirs = GroupViTModel(GroupViTConfig(**config)).eval()
    theirs.load_state_dict(weights)

    def encoded(window: Tensor, *, attentions: bool) -> Any:
        return theirs.vision_model(window, output_attentions=attentions)

    def masks(window: Tensor) -> Tensor:
        first, second = (stage for stage in encoded(window, attentions=True).attentions if stage is not None)
        shared = second.softmax(dim=1) @ first.softmax(dim=1)
        return shared[0].unflatten(-1, (window.shape[-2] // 16, window.shape[-1] // 16))

    def tower(window: Tensor) -> tuple[Tensor, Tensor]:
        output = encoded(window, attentions=False)
        project = theirs.visual_projection
        return project(output.last_hidden_state[0]), project(output.pooler_output)[0]

    return masks, tower


@torch.inference_mode()
def straightforward(
    image: np.ndarray, masks: Masks, tower: Tower, scale: Tensor, classes: Tensor, threshold: float | None
) -> np.ndarray:
    """Labels [H, W] of one image, by the protocol as it is usually written."""
    pixels = to_tensor(resize_short_side(image, 448, antialias=False))[None]
    num_layers = len(classes) + (threshold is not None)
    total, times = torch.zeros(num_layers, *pixels.shape[-2:]), torch.zeros(pixels.shape[-2:])
    for top, bottom, left, right in windows(pixels.shape[-2], pixels.shape[-1], 448, 224):
        window = pixels[..., top:bottom, left:right]
        size = window.shape[-2:]
        enlarged = F.interpolate(masks(window)[None], size=size, mode="bilinear", align_corners=False)[0]
        one_hot = F.one_hot(enlarged.argmax(dim=0), len(enlarged)).float()
        segments, whole = tower(window)
        logits = scale.exp().clamp(max=100) * F.normalize(segments, dim=-1) @ classes.T
        best = (scale.exp().clamp(max=100) * F.normalize(whole, dim=-1) @ classes.T).topk(5).indices
        gated = torch.full_like(logits, -torch.inf).index_copy(1, best, logits[:, best])
        scores = gated.softmax(dim=-1) * logits.softmax(dim=-1)
        of_pixels = (one_hot @ scores).permute(2, 0, 1)
        if threshold is not None:
            uncertain = of_pixels.amax(dim=0) < scores.max().clamp(max=threshold)
            of_pixels = torch.cat([uncertain[None].float(), of_pixels])
        total[:, top:bottom, left:right] += of_pixels
        times[top:bottom, left:right] += 1
    resized = F.interpolate((total / times)[None], size=image.shape[:2], mode="bilinear", align_corners=False)
    return resized[0].argmax(dim=0).numpy()


def compare(name: str, num_images: int, repeats: int, own_tower: bool, precision: Precision) -> dict[str, float]:
    num_classes, threshold, size = BENCHMARKS[name]
    model = our_model()
    classes = F.normalize(torch.randn(num_classes, 256, generator=torch.Generator().manual_seed(1)), dim=-1)
    config = SegmentationConfig(background_threshold=threshold)
    words = Words.of(model, classes, None, config)
    masks, tower = our_tower(model) if own_tower else their_tower(model)

    def ours(images: list[np.ndarray]) -> list[np.ndarray]:
        encoded = encode_views(model, images, config, precision=precision)
        return [label(views, words, size, config, (threshold,))[0] for views in encoded]

    def theirs(images: list[np.ndarray]) -> list[np.ndarray]:
        return [straightforward(image, masks, tower, model.logit_scale, classes, threshold) for image in images]

    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    equal = []
    for run in (ours, theirs):
        run([noisy_picture(0, size)])
    for turn in range(repeats):
        images = [noisy_picture(1 + turn * num_images + index, size) for index in range(num_images)]
        found = {}
        sides = [("ours", ours), ("theirs", theirs)]
        for side, run in sides if turn % 2 else reversed(sides):
            start = time.perf_counter()
            found[side] = run(images)
            seconds[side].append(time.perf_counter() - start)
        equal += [(a == b).mean() for a, b in zip(found["ours"], found["theirs"], strict=True)]
    return {
        "ours_images_per_second": num_images / statistics.median(seconds["ours"]),
        "theirs_images_per_second": num_images / statistics.median(seconds["theirs"]),
        "ratio": statistics.median(b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)),
        "equal_pixels": min(equal),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help=f"{', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=4, help="images of a turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--own-tower", action="store_true", help="the other side runs our tower, twice")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of our tower")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine())
    if unknown := set(arguments.benchmarks) - set(BENCHMARKS):
        parser.error(f"{', '.join(sorted(unknown))}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    results = {}
    for name in arguments.benchmarks or BENCHMARKS:
        result = results[name] = compare(
            name, arguments.images, arguments.repeats, arguments.own_tower, arguments.precision
        )
        print(
            f"{name:11} ours {result['ours_images_per_second']:.2f} images/s  straightforward "
            f"{result['theirs_images_per_second']:.2f}  ratio {result['ratio']:.2f} (bar {BAR})  equal pixels "
            f"{result['equal_pixels']:.4%}",
            flush=True,
        )
    report("evaluate", {f"{name}: ours / straightforward": found["ratio"] for name, found in results.items()})
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
