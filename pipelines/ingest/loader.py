"""From data sets to training batches: the order of samples, turned into slices by Ray Data.

`training_slices` makes the one Ray data set of a run, or of the rest of it. Its processes read, decode, augment and
tokenise a window of samples at a time. Every block they yield is a single row that holds one slice: so Ray neither cuts
nor merges slices, and its splitter, which gives the next block to the worker that had the fewest rows, deals them
round-robin. With `preserve_order`, worker r of W gets the slices with index ≡ r (mod W), in order. Nothing in the data
set depends on the number of workers.

To resume, make a data set that starts at another step. Ray Train calls a *function* in its `datasets` argument for
every group of workers it starts, so this resumes after a failure:

    datasets={"train": lambda: training_slices(config, first_step=latest_checkpoint())}

What handles images lies in `pipelines.ingest.slices`, imported by those processes only, and a plan holds plain values:
Ray keeps several processes that merely coordinate, and importing torch would cost each of them seconds and most of a
gigabyte.

A window's task is pure, all draws come from generators seeded by (seed, epoch, sample id): Ray may run it again
anywhere.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import ray.data
from ray.data import ActorPoolStrategy, DataContext, ExecutionOptions

from pipelines.ingest.plan import IngestPlan, Slice, plan_ingest

if TYPE_CHECKING:
    from pipelines.experiments.config import ExperimentConfig


def training_slices(config: "ExperimentConfig", *, first_step: int, stay_open: bool = False) -> ray.data.Dataset:
    """The slices of steps `first_step` … num_steps-1, in order; give them out by `streaming_split(W, equal=False)`.

    The time to its first slice does not depend on `first_step`.

    `stay_open`: the data set does not end after its last slice; the consumer knows how many it takes. Ray's scheduling
    loop sleeps only while some task is at work; when all wait for the consumer, as they do wherever reading is faster
    than training, it spins and takes up to half a core from training. A task that does not end lets it sleep.
    """
    plan = plan_ingest(config)
    slices_per_step = config.slices_per_step
    bounds = {"first": first_step * slices_per_step, "end": config.training.num_steps * slices_per_step}
    context = DataContext.get_current().copy()
    context.execution_options = ExecutionOptions(preserve_order=True)
    context.enable_progress_bars = False  # the run has a line of its own
    context.target_max_block_size = 1  # byte: every row, whatever its size, becomes a block
    with DataContext.current(context):
        # A generator that takes no CPU names the windows one by one as they are needed: to set up a read task for every
        # window of a long run would take Ray minutes.
        windows = ray.data.from_items([bounds]).map_batches(
            _split_by_window,  # pyright: ignore[reportArgumentType]
            fn_args=(plan.order.window_size // plan.slice_size, stay_open),
            batch_size=None,
            num_cpus=0,
        )
        return windows.map_batches(
            _SliceLoader,  # pyright: ignore[reportArgumentType]
            fn_constructor_args=(plan,),
            batch_size=None,
            num_cpus=1,
            compute=ActorPoolStrategy(
                min_size=1,
                max_size=config.ingest.max_processes or _free_cpus(config),
                # One window is made while another is handed over; two more wait, or the pool would not grow.
                enable_true_multi_threading=True,
                max_concurrent_calls_per_actor=2,
                max_tasks_in_flight_per_actor=4,
            ),
        )


def iter_slices(shard: ray.data.DataIterator | ray.data.Dataset, *, prefetch_slices: int = 2) -> Iterator[Slice]:
    """The slices of one worker, from its part of the split data set, or from the whole if it is alone.

    Arrays are read-only, in Ray's shared memory.
    """
    blocks = shard.iter_batches(
        batch_size=None,  # pyright: ignore[reportArgumentType]
        batch_format="numpy",
        prefetch_batches=prefetch_slices,
    )
    for block in blocks:
        piece: Slice = {name: column[0] for name, column in block.items()}  # pyright: ignore
        if "prompt_keys" not in piece:  # Ray cannot carry an array without elements
            piece["prompt_keys"] = np.empty((len(piece["position"]), 0), dtype=np.int64)
        yield piece


def _split_by_window(
    batch: Mapping[str, npt.NDArray[Any]], slices_per_window: int, stay_open: bool = False
) -> Iterator[dict[str, list[int]]]:
    """Cut the range of slices at the borders of windows: one row for each window; kept open, then empty ones."""
    first, last = int(batch["first"][0]), int(batch["end"][0])
    while first < last:
        end = min(first - first % slices_per_window + slices_per_window, last)
        yield {"first": [first], "end": [end]}
        first = end
    pause = 0.5
    while stay_open:  # until the execution is shut down with the workers it serves
        time.sleep(pause)
        # A row leaves Ray's output buffer when the next one comes: the last ones need these, which are empty. Each
        # costs Ray a task, and a slow run may wait for long.
        yield {"first": [last], "end": [last]}
        pause = min(2 * pause, 30.0)


def _free_cpus(config: "ExperimentConfig") -> int:
    """CPUs of the cluster that neither training nor evaluation asks for; at least 1."""
    training, evaluation = config.training, config.evaluation
    taken = training.num_workers * training.cpus_per_worker
    if evaluation.every_n_steps is not None:
        taken += evaluation.num_workers * evaluation.cpus_per_worker
    return max(1, int(ray.cluster_resources().get("CPU", 0)) - taken)


class _SliceLoader:
    """A process that makes windows into slices, one after the other, and hands them over meanwhile.

    Ray collects what a task yields some ten times a second and lets it run two blocks ahead. So a window is whole
    before its first slice is yielded: a task whose turn has not come would wait with its work undone. And another
    thread makes the next window by then, or the CPU would be idle for a quarter of the time.
    """

    def __init__(self, plan: IngestPlan) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the process has one CPU
        from pipelines.ingest.slices import load_slices

        self._load_slices, self._plan = load_slices, plan
        self._cpu = threading.Lock()

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> Iterator[dict[str, npt.NDArray[Any]]]:
        first, end = int(batch["first"][0]), int(batch["end"][0])
        if first == end:  # nobody takes it
            yield {"position": np.full((1, 1), -1)}
            return
        with self._cpu:
            pieces = self._load_slices(self._plan, first, end)
        for piece in pieces:
            row = {name: column[None] for name, column in piece.items() if column.size}
            row["sample_id"] = np.empty(1, dtype=object)
            row["sample_id"][0] = piece["sample_id"].tolist()  # a list of strings: tensors hold numbers only
            yield row
