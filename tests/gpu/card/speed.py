"""Speed of the whole training step: images per second, memory, the share of the card's FLOP/s, host beside device."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from groupvit.config import Precision
from groupvit.training import Batch
from pipelines.ingest.plan import Slice
from tests.gpu.card.context import Context
from tests.gpu.card.material import make_slice
from tests.gpu.card.step import (
    Step,
    batch_of,
    batches_ahead,
    compiled,
    make_step,
    new_model,
    parts_of,
)

PROMPTS = (3, 0)

Run = Callable[[int], object]
"""Does the step of this number."""


def speed(context: Context) -> None:
    sizes, row = context.sizes, context.report.row
    flops: dict[int, float] = {}
    for num_prompts in PROMPTS:
        row(f"work of an image, {num_prompts} prompts", partial(_count_work, context, num_prompts, flops))
    for size in sizes.batches:
        slices = {k: make_slices(context, size, k) for k in PROMPTS}
        for how in ("eager", "compiled"):
            run = partial(_of_batch, context, size, how == "compiled", slices, flops)
            row(f"batch {size}, {how}", run, seconds=25 if how == "compiled" else 10)
    precisions: tuple[Precision, ...] = ("tf32", "float32")
    for precision in precisions:
        name = step_name(sizes.middle_batch, 3, precision, "eager")
        row(name, partial(_of_precision, context, name, precision), seconds=8)
    for parts in (1, 4):
        name = f"batch {sizes.middle_batch} in {parts} micro-batches, eager"
        row(name, partial(_micro_batches, context, name, parts), seconds=8)


def step_name(size: int, num_prompts: int, precision: str, how: str) -> str:
    return f"batch {size}, {num_prompts} prompts, {precision}, {how}"


def _of_batch(
    context: Context, size: int, compiles: bool, slices: dict[int, list[Slice]], flops: dict[int, float]
) -> None:
    """One model for all rows of a batch size, so that it is compiled once for the shape of its images."""
    sizes, device, report = context.sizes, context.device, context.report
    how = "compiled" if compiles else "eager"
    torch._dynamo.reset()
    device.free_memory()
    model, towers = new_model(device, sizes.model), None
    if compiles:
        try:
            batch = batch_of(slices[PROMPTS[0]][0], device, sizes.model)
            towers = compiled(device, model, batch, sizes.precision)
        except torch.OutOfMemoryError:
            report.skip(f"batch {size}, compiled", "out of memory")
            return
    step = make_step(device, model, sizes.precision, towers)
    for num_prompts in PROMPTS:
        name = step_name(size, num_prompts, sizes.precision, how)
        given = slices[num_prompts]
        report.row(name, partial(_ready, context, name, step, given, flops.get(num_prompts)), seconds=8)
        if num_prompts == PROMPTS[0] and size >= sizes.middle_batch:
            name = f"{name}, with its preparation"
            report.row(name, partial(_prepared, context, name, step, given), seconds=8)


def _ready(context: Context, name: str, step: Step, slices: Sequence[Slice], flops: float | None) -> None:
    """Batches lie on the device."""
    context.device.free_memory()
    size, num_prompts = slices[0]["prompt_keys"].shape
    batches = [[batch_of(item, context.device, context.sizes.model)] for item in slices]
    values = rate(context, _cycled(step, batches, num_prompts), size, warm=num_prompts != PROMPTS[0])
    peak = context.device.peak_flops
    if flops is not None and peak is not None:
        values["MFU"] = values["images/s"] * flops / peak
    context.report.measured(name, values)


def _prepared(context: Context, name: str, step: Step, slices: Sequence[Slice]) -> None:
    """Batches are made of slices, as in the training loop."""
    size, num_prompts = slices[0]["prompt_keys"].shape
    with batches_ahead(itertools.cycle(slices), context.device, context.sizes.model) as batches:
        values = rate(context, lambda _: step([next(batches)], num_prompts), size, warm=True)
    context.report.measured(name, values)


def rate(context: Context, run: Run, size: int, *, warm: bool = False) -> dict[str, float]:
    """Times steps of `size` images: first ones apart, then many that nothing waits for, then some one by one.

    `warm`: the model has done steps before.
    """
    device, sizes = context.device, context.sizes
    numbers = itertools.count()
    first = device.seconds(lambda: run(next(numbers)))
    count = max(sizes.first_steps // (3 if warm else 1), 1)
    firsts = first + sum(device.seconds(lambda: run(next(numbers))) for _ in range(count - 1))
    device.wait()
    start, steps = time.perf_counter(), 0
    while steps < 2 or time.perf_counter() - start < sizes.seconds:
        run(next(numbers))
        steps += 1
        if steps % sizes.num_batches == 0:
            device.wait()  # the host may run ahead by some steps, not by seconds
    device.wait()
    seconds = (time.perf_counter() - start) / steps
    hosts, wholes = [], []
    for _ in range(sizes.steps_one_by_one):
        device.wait()
        begin = time.perf_counter()
        run(next(numbers))
        hosts.append(time.perf_counter() - begin)
        device.wait()
        wholes.append(time.perf_counter() - begin)
    kernel_seconds, kernels = device.kernels(lambda: [run(next(numbers)) for _ in range(sizes.profiled_steps)])
    values = {
        "images/s": size / seconds,
        "step ms": 1e3 * seconds,
        "host ms": 1e3 * statistics.median(hosts),
        "kernels ms": 1e3 * kernel_seconds / sizes.profiled_steps,
        "one by one ms": 1e3 * statistics.median(wholes),
        "kernels": kernels // sizes.profiled_steps,
        "first step s": first,
        f"first {count} steps s": firsts,
    }
    peak = device.peak_gib()
    return values if peak is None else values | {"memory GiB": peak}


def _count_work(context: Context, num_prompts: int, flops: dict[int, float]) -> None:
    flops[num_prompts] = flops_per_image(context, num_prompts)
    context.report.measured(f"work of an image, {num_prompts} prompts", {"GFLOP": flops[num_prompts] / 1e9})


def flops_per_image(context: Context, num_prompts: int) -> float:
    """FLOPs of forward and backward, by torch's counter. They depend on the lengths of the texts."""
    sizes, device = context.sizes, context.device
    size = min(sizes.middle_batch, 64)
    step = make_step(device, new_model(device, sizes.model), sizes.precision)
    batch = batch_of(make_slice(size, num_prompts, sizes.model, seed=0), device, sizes.model)
    with FlopCounterMode(display=False) as counter:
        step([batch], num_prompts)
    return counter.get_total_flops() / size


def make_slices(context: Context, size: int, num_prompts: int) -> list[Slice]:
    """Slices that take turns. Their texts have different lengths."""
    numbers = range(context.sizes.num_batches)
    return [make_slice(size, num_prompts, context.sizes.model, seed=seed) for seed in numbers]


def _cycled(step: Step, batches: Sequence[Sequence[Batch]], num_prompts: int) -> Run:
    return lambda number: step(batches[number % len(batches)], num_prompts)


def _of_precision(context: Context, name: str, precision: Precision) -> None:
    sizes, device = context.sizes, context.device
    device.free_memory()
    batches = [[batch_of(item, device, sizes.model)] for item in make_slices(context, sizes.middle_batch, 3)]
    step = make_step(device, new_model(device, sizes.model), precision)
    context.report.measured(name, rate(context, _cycled(step, batches, 3), sizes.middle_batch))


def _micro_batches(context: Context, name: str, parts: int) -> None:
    sizes, device = context.sizes, context.device
    device.free_memory()
    slices = [parts_of(item, parts) for item in make_slices(context, sizes.middle_batch, 3)]
    batches = [[batch_of(item, device, sizes.model) for item in of_step] for of_step in slices]
    step = make_step(device, new_model(device, sizes.model), sizes.precision)
    context.report.measured(name, rate(context, _cycled(step, batches, 3), sizes.middle_batch))
