"""Compiled towers: graphs, breaks and seconds of a first start, and of another process with a warm cache."""

import os
import time
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from groupvit.config import LossConfig, Precision
from groupvit.model import GroupViT
from groupvit.training import Batch, Towers, compute_gradients
from tests.gpu.card.context import Context
from tests.gpu.card.material import make_slice
from tests.gpu.card.report import SkippedError, Value
from tests.gpu.card.step import batch_of, compiled, make_step, new_model

MAX_GRAPHS = 4
LOSS_BOUND = 0.01
"""In bfloat16, kernels that are fused round less often."""
NUM_PROMPTS = 3


def first_start(context: Context) -> None:
    _start(context, "first start")


def second_start(context: Context) -> None:
    """In the process of another part, which finds the compiled code on disk."""
    cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    if context.device.is_gpu and not cache.exists():
        raise SkippedError("part 1 has not run with this --out, so there is no compiled code")
    _start(context, "second start")


def _start(context: Context, name: str) -> None:
    """Compiles, then takes steps over batches whose texts have other shapes each time."""
    device, sizes = context.device, context.sizes
    torch._dynamo.reset()
    counters.clear()
    model = new_model(device, sizes.model)
    slices = [make_slice(sizes.middle_batch, NUM_PROMPTS, sizes.model, seed=seed) for seed in range(sizes.num_batches)]
    batches = [batch_of(item, device, sizes.model) for item in slices]
    start = time.perf_counter()
    towers = compiled(device, model, batches[0], sizes.precision)
    device.wait()
    compile_seconds = time.perf_counter() - start
    step = make_step(device, model, sizes.precision, towers)
    seconds = [device.seconds(lambda: step([batch], NUM_PROMPTS)) for batch in batches]  # noqa: B023
    again = device.seconds(lambda: step([batches[0]], NUM_PROMPTS))
    losses = [_loss(model, batches[0], sizes.precision, passes) for passes in (towers, None)]
    error = abs(losses[0] - losses[1]) / abs(losses[1])
    context.report.at_most(f"{name}, loss beside the eager towers'", error, LOSS_BOUND)
    breaks, graphs = counters["graph_break"], counters["stats"]["unique_graphs"]
    values: dict[str, Value] = {
        "compile s": compile_seconds,
        "first step s": seconds[0],
        "steps with new texts s": sum(seconds[1:]),
        "a later step s": again,
        "graphs": graphs,
        "breaks": sum(breaks.values()),
    }
    why = f"expected no break and at most {MAX_GRAPHS} graphs; breaks: {'; '.join(breaks)}"
    context.report.check(name, not breaks and graphs <= MAX_GRAPHS, values, why)


def _loss(model: GroupViT, batch: Batch, precision: Precision, towers: Towers | None) -> float:
    loss = LossConfig(num_prompts=NUM_PROMPTS)
    metrics = compute_gradients(model, [batch], loss=loss, seed=0, step=0, precision=precision, towers=towers)
    return metrics["loss"].item()
