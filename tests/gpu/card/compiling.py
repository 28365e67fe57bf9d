"""Compiled towers: graphs, breaks and seconds of a first start, and of another process with a warm cache."""

import os
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from tests.gpu.card.context import Context
from tests.gpu.card.material import make_slice
from tests.gpu.card.report import SkippedError, Value
from tests.gpu.card.step import batch_of, compile_model, make_step, new_model

MAX_GRAPHS = 8
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
    """Steps over batches whose texts have other shapes each time."""
    device, sizes = context.device, context.sizes
    torch._dynamo.reset()
    counters.clear()
    model = new_model(device, sizes.model)
    step = make_step(device, model, sizes.precision)
    slices = [make_slice(sizes.middle_batch, NUM_PROMPTS, sizes.model, seed=seed) for seed in range(sizes.num_batches)]
    batches = [batch_of(item, device, sizes.model) for item in slices]
    function = compile_model(device, model)
    seconds = [device.seconds(lambda: step([batch], NUM_PROMPTS)) for batch in batches]  # noqa: B023
    again = device.seconds(lambda: step([batches[0]], NUM_PROMPTS))
    breaks = counters["graph_break"]
    values: dict[str, Value] = {
        "by": function,
        "first step s": seconds[0],
        "steps with new texts s": sum(seconds[1:]),
        "a later step s": again,
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(breaks.values()),
    }
    whole = not breaks and counters["stats"]["unique_graphs"] <= MAX_GRAPHS
    why = f"expected no break and at most {MAX_GRAPHS} graphs; breaks: {'; '.join(breaks)}"
    context.report.check(name, whole, values, why)
