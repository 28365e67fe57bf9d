"""From data sets to training batches: Ray Data turns the order of samples into slices.

`training_slices` creates the single Ray data set of a run, or of the rest of it. Its processes read, decode, augment
and tokenise a window of samples at a time. Each block they yield is a single row with one slice, so Ray neither splits
nor merges slices. Ray's splitter gives the next block to the worker with the fewest rows, which here is round-robin.
With `preserve_order`, worker r of W gets the slices with index ≡ r (mod W), in order. Nothing in the data set depends
on the number of workers.

To resume, create a data set that starts at another step. Ray Train calls a *function* in its `datasets` argument for
every group of workers that it starts, so this resumes after a failure:

    datasets={"train": lambda: training_slices(config, first_step=latest_checkpoint())}

Code that handles images is in `pipelines.ingest.slices`, which only those processes import, and a plan holds plain
values. Ray keeps several processes that only coordinate, and importing torch would cost each of them seconds and most
of a gigabyte.

The task of a window is pure: generators seeded by (seed, epoch, sample id) make all draws. So Ray may run it again
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
from pipelines.ingest.room import cpus_of_reader, free_cpus

if TYPE_CHECKING:
    from pipelines.experiments.config import ExperimentConfig


def training_slices(config: "ExperimentConfig", *, first_step: int, stay_open: bool = False) -> ray.data.Dataset:
    """Creates the slices of steps `first_step` to num_steps - 1, in order.

    Distribute them with `streaming_split(W, equal=False)`. The time to the first slice does not depend on `first_step`.

    Args:
        stay_open: Whether the data set stays open after its last slice; the consumer knows how many to take. Ray's
            scheduling loop sleeps only while a task is running. If all tasks wait for the consumer, which happens when
            reading is faster than training, it spins and takes up to half a core from training. A task that does not
            end lets it sleep.
    """
    plan = plan_ingest(config)
    slices_per_step = config.slices_per_step
    bounds = {"first": first_step * slices_per_step, "end": config.training.num_steps * slices_per_step}
    context = DataContext.get_current().copy()
    context.execution_options = ExecutionOptions(preserve_order=True)
    context.enable_progress_bars = False  # the run has its own progress line
    context.target_max_block_size = 1  # byte: each row becomes a block, whatever its size
    with DataContext.current(context):
        # A generator that takes no CPU yields the windows as they are needed. Setting up a read task for every window
        # of a long run would take Ray minutes.
        windows = ray.data.from_items([bounds]).map_batches(
            _split_by_window,  # pyright: ignore[reportArgumentType]
            fn_args=(plan.order.window_size // plan.slice_size, stay_open),
            batch_size=None,
            num_cpus=0,
        )
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        num_processes = config.ingest.max_processes or max(free_cpus(config, nodes), 1)
        return windows.map_batches(
            _SliceLoader,  # pyright: ignore[reportArgumentType]
            fn_constructor_args=(plan,),
            batch_size=None,
            num_cpus=cpus_of_reader(config, nodes),
            compute=ActorPoolStrategy(
                min_size=1,
                max_size=num_processes,
                # One window is made while another is handed over. Two more wait; otherwise the pool would not grow.
                enable_true_multi_threading=True,
                max_concurrent_calls_per_actor=2,
                max_tasks_in_flight_per_actor=4,
            ),
        )


def object_store_bytes() -> float:
    """Size of the cluster's object store."""
    return ray.cluster_resources().get("object_store_memory", 0.0)


def iter_slices(shard: ray.data.DataIterator | ray.data.Dataset, *, prefetch_slices: int = 2) -> Iterator[Slice]:
    """Yields the slices of one worker, from its part of the split data set, or from the whole one if it is alone.

    Arrays are read-only, in Ray's shared memory.
    """
    blocks = shard.iter_batches(
        batch_size=None,  # pyright: ignore[reportArgumentType]
        batch_format="numpy",
        prefetch_batches=prefetch_slices,
    )
    for block in blocks:
        piece: Slice = {name: column[0] for name, column in block.items()}  # pyright: ignore
        if "prompt_keys" not in piece:  # Ray cannot transfer an array without elements
            piece["prompt_keys"] = np.empty((len(piece["position"]), 0), dtype=np.int64)
        yield piece


def num_prefetched(config: "ExperimentConfig", object_store_bytes: float) -> int:
    """Number of slices to hold ready for each worker: `ingest.prefetch_slices`, by default those of a step.

    Those of all workers take at most an eighth of the cluster's object store. Ray counts them as output of the tasks
    that make slices. If they took all that it allows these tasks, it would start no other, and wait for ever.
    """
    if config.ingest.prefetch_slices is not None:
        return config.ingest.prefetch_slices
    bytes_per_slice = config.slice_size * 3 * config.model.image.image_size**2
    num_fitting = int(object_store_bytes / 8 / config.training.max_workers / bytes_per_slice)
    return max(1, min(config.micro_batches_per_step, num_fitting))


def _split_by_window(
    batch: Mapping[str, npt.NDArray[Any]], slices_per_window: int, stay_open: bool = False
) -> Iterator[dict[str, list[int]]]:
    """Splits the range of slices at window borders, one row per window. If kept open, then yields empty rows."""
    first, last = int(batch["first"][0]), int(batch["end"][0])
    while first < last:
        end = min(first - first % slices_per_window + slices_per_window, last)
        yield {"first": [first], "end": [end]}
        first = end
    pause = 0.5
    while stay_open:  # until the execution is shut down with its workers
        time.sleep(pause)
        # A row leaves Ray's output buffer only when the next one arrives, so empty rows flush the last ones; the last
        # step waits for several. Each costs Ray a task, and a slow run may wait for long.
        yield {"first": [last], "end": [last]}
        pause = min(2 * pause, 2.0)


class _SliceLoader:
    """A process that turns windows into slices, one after the other, and hands them over at the same time.

    Ray collects what a task yields some ten times a second and lets it run two blocks ahead. So a window is completed
    before its first slice is yielded; otherwise a task whose turn has not come would wait with its work undone. Another
    thread already makes the next window; otherwise the CPU would be idle for a quarter of the time.
    """

    def __init__(self, plan: IngestPlan) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the process has one CPU
        from pipelines.ingest.slices import load_slices

        self._load_slices, self._plan = load_slices, plan
        self._cpu = threading.Lock()

    def __call__(self, batch: Mapping[str, npt.NDArray[Any]]) -> Iterator[dict[str, npt.NDArray[Any]]]:
        first, end = int(batch["first"][0]), int(batch["end"][0])
        if first == end:  # nobody uses it
            yield {"position": np.full((1, 1), -1)}
            return
        with self._cpu:
            pieces = self._load_slices(self._plan, first, end)
        for piece in pieces:
            row = {name: column[None] for name, column in piece.items() if column.size}
            row["sample_id"] = np.empty(1, dtype=object)
            row["sample_id"][0] = piece["sample_id"].tolist()  # a list of strings, because tensors hold numbers only
            yield row
