"""What exact sums cost: a training step with gradients summed as integers beside one with float32 sums.

    python tests/performance/benchmark_exact_sums.py [--slices 2] [--repeats 12] [--json]

The demo's model with slices of 32, and the full-size model with slices of 8, on one thread. The steps take turns; the
clock is the process's CPU time, so that a busy machine does not matter.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from groupvit.config import LossConfig, ModelConfig, OptimizerConfig, ReducePrecision
from groupvit.model import GroupViT
from groupvit.optim import build_optimizer, set_learning_rate
from groupvit.training import Batch, train_step
from pipelines.experiments.catalogue import demo
from tests.performance.machine import machine
from tests.performance.report import report

BAR = 0.95
"""Least ratio: float32 sums' seconds / exact sums' seconds."""


def random_batch(config: ModelConfig, size: int, num_prompts: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    text, side = config.text, config.image.image_size
    token_ids = torch.zeros(size, 1 + num_prompts, text.context_length, dtype=torch.int64)
    token_ids[..., :8] = torch.randint(1, text.vocab_size - 2, (size, 1 + num_prompts, 8), generator=generator)
    token_ids[..., 8] = text.vocab_size - 1
    keys = torch.randint(0, 1000, (size, num_prompts), generator=generator)
    images = torch.randn(size, 3, side, side, generator=generator)
    return Batch(images=images, token_ids=token_ids, prompt_keys=keys)


def make_step(
    config: ModelConfig, loss: LossConfig, batches: list[Batch], reduce_precision: ReducePrecision
) -> Callable[[], float]:
    """A function that takes one step, and returns its seconds."""
    torch.manual_seed(0)
    model = GroupViT(config).train()
    optimizer = build_optimizer(model, OptimizerConfig())
    set_learning_rate(optimizer, 1e-5)

    def step() -> float:
        start = time.process_time()
        train_step(
            model,
            optimizer,
            batches,
            loss=loss,
            seed=0,
            step=0,
            clip_grad_norm=5.0,
            reduce_precision=reduce_precision,
        )
        return time.process_time() - start

    return step


def compare(config: ModelConfig, loss: LossConfig, size: int, num_slices: int, repeats: int) -> float:
    """The median over turns of (seconds with float32 sums / seconds with exact sums)."""
    batches = [random_batch(config, size, loss.num_prompts, seed) for seed in range(num_slices)]
    exact, plain = (make_step(config, loss, batches, precision) for precision in ("exact", "float32"))
    for step in (exact, plain):
        step()
    ratios = []
    for turn in range(repeats):
        if turn % 2:
            seconds = exact()
            ratios.append(plain() / seconds)
        else:
            seconds = plain()
            ratios.append(seconds / exact())
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    ratios = {}
    for name, config, loss, size in (
        ("demo", demo().model, demo().loss, 32),
        ("full size", ModelConfig(), LossConfig(), 8),
    ):
        ratio = ratios[name] = compare(config, loss, size, arguments.slices, arguments.repeats)
        print(f"{name}, {arguments.slices} slices of {size}: float32 sums / exact sums {ratio:.3f} (bar {BAR})")
    report("exact sums", {f"{name}: float32 sums / exact sums": ratio for name, ratio in ratios.items()})
    if arguments.json:
        print(json.dumps(ratios))


if __name__ == "__main__":
    main()
