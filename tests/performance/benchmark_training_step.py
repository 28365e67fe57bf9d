"""Speed of our training step beside transformers' GroupViT: same losses, optimiser, texts, threads and precision.

    python tests/performance/benchmark_training_step.py [--threads 2] [--batch-size 16] [--repeats 12] [--json]

Both steps are whole: forward, losses, backward, clipping, AdamW. They take turns, the order swapped every time, so that
a busy machine slows both; the ratio is the median of the ratios of turns. Theirs runs as its authors ship it (it knows
only "eager" attention), with our losses and the same fused AdamW, and computes all 77 text positions.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import GroupViTConfig, GroupViTModel

from groupvit.captions import draw_prompts, mine_nouns
from groupvit.config import LossConfig, ModelConfig, OptimizerConfig, Precision
from groupvit.losses import image_text_contrastive_loss, multi_label_contrastive_loss
from groupvit.model import GroupViT
from groupvit.optim import build_optimizer, set_learning_rate
from groupvit.tokenizer import Tokenizer
from groupvit.training import Batch, train_step
from tests.performance.machine import machine
from tests.performance.report import report

CAPTIONS = (Path(__file__).parent / "captions.txt").read_text().splitlines()
BARS: dict[tuple[int, Precision], float] = {
    (3, "float32"): 1.7,
    (3, "bfloat16"): 1.3,
    (0, "float32"): 1.1,
    (0, "bfloat16"): 1.1,
}
LEARNING_RATE, CLIP_GRAD_NORM = 1e-5, 5.0


def random_batches(num_batches: int, batch_size: int, num_prompts: int) -> list[Batch]:
    """Noise for images; drawn captions, and prompts made of their nouns as in training, padded to 77 ids."""
    rng = np.random.default_rng(0)
    tokenize, nouns = Tokenizer(), list(mine_nouns(CAPTIONS))
    batches = []
    for _ in range(num_batches):
        texts = []
        for index in rng.choice(len(CAPTIONS), batch_size, replace=False):
            texts += [CAPTIONS[index], *draw_prompts(nouns[index], CAPTIONS[index], num_prompts, rng)[0]]
        token_ids = torch.from_numpy(tokenize(texts).astype(np.int64)).view(batch_size, 1 + num_prompts, -1)
        batches.append(Batch(images=torch.randn(batch_size, 3, 224, 224), token_ids=token_ids))
    return batches


def our_step(num_prompts: int, precision: Precision) -> Callable[[Batch], None]:
    model = GroupViT(ModelConfig()).train()
    optimizer = build_optimizer(model, OptimizerConfig())
    set_learning_rate(optimizer, LEARNING_RATE)
    loss = LossConfig(num_prompts=num_prompts)

    def step(batch: Batch) -> None:
        train_step(
            model, optimizer, [batch], loss=loss, seed=0, step=0, precision=precision, clip_grad_norm=CLIP_GRAD_NORM
        )

    return step


def their_step(num_prompts: int, precision: Precision) -> Callable[[Batch], None]:
    model = GroupViTModel(GroupViTConfig()).train()
    multi_label_logit_scale = torch.nn.Parameter(model.logit_scale.detach().clone())
    parameters = [*model.parameters(), multi_label_logit_scale]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.05, fused=True)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            assert isinstance(batch.images, Tensor)
            images = _tensor(model.get_image_features(pixel_values=batch.images))
            texts = _tensor(model.get_text_features(input_ids=batch.token_ids.flatten(0, 1)))
        texts = texts.unflatten(0, batch.token_ids.shape[:2])
        loss = image_text_contrastive_loss(images, texts[:, 0], model.logit_scale)
        if num_prompts > 0:
            loss = loss + multi_label_contrastive_loss(images, texts[:, 1:], multi_label_logit_scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_GRAD_NORM)
        optimizer.step()

    return step


def _tensor(features: object) -> Tensor:
    """transformers 5 wraps the projected features; 4 returns them as they are."""
    return features if isinstance(features, Tensor) else features.pooler_output  # type: ignore[attr-defined]


def seconds(step: Callable[[Batch], None], batch: Batch, clock: Callable[[], float]) -> float:
    start = clock()
    step(batch)
    return clock() - start


def compare(
    num_prompts: int, precision: Precision, batch_size: int, repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Images/s of both, and the median over turns of (their seconds / our seconds)."""
    batches = random_batches(min(repeats, 8), batch_size, num_prompts)
    ours, theirs = our_step(num_prompts, precision), their_step(num_prompts, precision)
    for step in (ours, theirs, ours, theirs):
        step(batches[0])
    our_seconds, their_seconds = [], []
    for turn in range(repeats):
        batch = batches[turn % len(batches)]
        sides = [(ours, our_seconds), (theirs, their_seconds)]
        for step, results in sides if turn % 2 else reversed(sides):
            results.append(seconds(step, batch, clock))
    return {
        "num_prompts": num_prompts,
        "ours_images_per_second": batch_size / statistics.median(our_seconds),
        "theirs_images_per_second": batch_size / statistics.median(their_seconds),
        "ratio": statistics.median(b / a for a, b in zip(our_seconds, their_seconds, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: process time, for busy machines")
    parser.add_argument("--only", choices=[f"{precision}-{num_prompts}" for num_prompts, precision in BARS])
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine())
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    results = {}
    print(f"batch {arguments.batch_size}, {arguments.threads} threads, images/s, median of {arguments.repeats} turns")
    for (num_prompts, precision), bar in BARS.items():
        name = f"{precision}-{num_prompts}"
        if arguments.only in (None, name):
            result = results[name] = compare(num_prompts, precision, arguments.batch_size, arguments.repeats, clock)
            print(
                f"{precision:9} K={num_prompts}  ours {result['ours_images_per_second']:5.2f}  transformers "
                f"{result['theirs_images_per_second']:5.2f}  ratio {result['ratio']:.2f} (bar {bar})",
                flush=True,
            )
    report(
        "training step",
        {f"{name.replace('-', ', K=')}: ours / transformers": found["ratio"] for name, found in results.items()},
    )
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
