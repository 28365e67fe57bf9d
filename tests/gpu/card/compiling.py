"""Compiled towers: graphs, breaks and seconds of a first start, and of a second process with a warm cache."""

import json
import subprocess

import torch
from torch._dynamo.utils import counters

from tests.gpu.card.context import Context
from tests.gpu.card.material import make_slice
from tests.gpu.card.report import Value
from tests.gpu.card.step import batch_of, compile_model, make_step, new_model

MAX_GRAPHS = 8
NUM_PROMPTS = 3


def compiled_start(context: Context) -> None:
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
    context.report.check("start", whole, values, why)


def second_start(context: Context) -> None:
    """The same in another process, which finds the compiled code on disk."""
    if not context.sizes.second_start:
        context.report.skip("second start", "--quick")
        return
    folder = context.out / "second_start"
    command = [*context.command, "--part", "1", "--section", "compiled start", "--out", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=max(context.report.seconds_left, 1), check=False
    )
    path = folder / "part1.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    found = next((row for row in rows if row["name"] == "start"), None)
    if found is None:
        raise RuntimeError(f"the second process said: {(done.stdout + done.stderr)[-500:]}")
    context.report.measured("second start", found["values"])
