"""Speed of training that writes checkpoints beside training that writes none, with the model of the demo.

    PYTHONPATH=. python tests/performance/benchmark_checkpoints.py [--threads 2] [--steps 100] [--repeats 5]
        [--clock cpu] [--json]

One worker trains without Ray on batches of noise. The kinds take turns, the order swapped every time; the ratio is the
median of the ratios of turns. For the upload, a SeaweedFS server and a proxy that passes 5 MB/s on take part of this
machine's cores, and the next checkpoint starts shortly after one is uploaded.

`--clock cpu` counts the processor time of the training process instead of seconds, for busy machines: what checkpoints
cost where no core is idle. It does not see a step that waits for the checkpoint before.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines import storage
from pipelines.experiments.catalogue import demo
from pipelines.experiments.config import ExperimentConfig
from pipelines.ingest.plan import Slice
from pipelines.runs.folder import RunFolder
from pipelines.training.loop import WorkerContext, train
from tests.performance.machine import machine
from tests.performance.report import report
from tests.support.object_store import ObjectStore
from tests.support.throttled_proxy import ThrottledProxy

EVERY_STEP, EVERY_100, UPLOAD, NONE = "every step", "every 100 steps", "uploads at 5 MB/s", "none"
BARS = {EVERY_STEP: 0.90, EVERY_100: 0.99, UPLOAD: 0.97}
BYTES_PER_SECOND = 5e6
WARM_UP_STEPS = 5


def make_config(num_steps: int, every_n_steps: int) -> ExperimentConfig:
    base = demo()
    return dataclasses.replace(
        base,
        ingest=dataclasses.replace(base.ingest, slice_size=base.training.global_batch_size),
        training=dataclasses.replace(
            base.training,
            num_steps=WARM_UP_STEPS + num_steps,
            num_workers=1,
            precision="float32",
            reduce_precision="float32",
            compile="off",
            checkpoint_every_n_steps=every_n_steps,
            log_every_n_steps=WARM_UP_STEPS,
        ),
    )


def slices(config: ExperimentConfig) -> Iterator[Slice]:
    """The same noise again and again, as slices of the run."""
    rng = np.random.default_rng(0)
    batch, size, num_prompts = config.slice_size, config.model.image.image_size, config.loss.num_prompts
    end_token = config.model.text.vocab_size - 1
    ids = np.zeros((batch, 1 + num_prompts, config.model.text.context_length), np.int32)
    ids[..., 0], ids[..., 1:8] = end_token - 1, rng.integers(1, end_token - 1, (*ids.shape[:2], 7))
    ids[..., 8] = end_token
    noise = {
        "image": rng.integers(0, 256, (batch, 3, size, size), dtype=np.uint8),
        "token_ids": ids,
        "prompt_keys": rng.integers(0, 50, (batch, num_prompts)),
        "erase_box": np.zeros((batch, 4), np.int16),
        "noise_seed": rng.integers(0, 2**62, batch),
        "source": np.zeros(batch, np.int8),
        "substituted": np.zeros(batch, bool),
    }
    for first in itertools.count(0, batch):
        yield noise | {"position": np.arange(first, first + batch)}


def steps_per_second(uri: str, num_steps: int, every_n_steps: int, clock: Callable[[], float]) -> float:
    """Trains a new run, and returns its speed after the first steps. The last checkpoint is not part of it."""
    config = make_config(num_steps, every_n_steps)
    times: dict[int, float] = {}

    def watch(done: int, values: Mapping[str, float]) -> None:
        times[done] = clock()

    context = WorkerContext(
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        group=None,
        precision="float32",
        first_step=0,
        slices=slices(config),
        say=lambda line: None,
        tracker=None,
        watch=watch,
        checkpoint_state={},
    )
    train(config, RunFolder(uri), context)
    return num_steps / (times[config.training.num_steps] - times[WARM_UP_STEPS])


def benchmark(num_steps: int, num_repeats: int, folder: Path, clock: Callable[[], float]) -> dict[str, Any]:
    speed = steps_per_second(f"{folder}/first", 20, 10**9, clock)
    size = sum(storage.list_sizes(RunFolder(f"{folder}/first").checkpoint_uri(20 + WARM_UP_STEPS)).values())
    print(f"a checkpoint has {size / 1e6:.1f} MB, a step takes {1000 / speed:.0f} ms of the clock", flush=True)
    per_upload = int(1.3 * speed * size / BYTES_PER_SECOND)  # steps; the next one begins when the last has ended
    cadences = {EVERY_STEP: 1, EVERY_100: 100, UPLOAD: per_upload, NONE: 10**9}
    rates: dict[str, list[float]] = {name: [] for name in cadences}
    for turn in range(num_repeats):
        for name in list(cadences)[:: 1 if turn % 2 else -1]:
            uri = f"s3://bucket/{turn}" if name == UPLOAD else f"{folder}/{name}-{turn}"
            rates[name].append(steps_per_second(uri, num_steps, cadences[name], clock))
            print(f"turn {turn + 1}: {name:17} {rates[name][-1]:6.2f} steps/s", flush=True)
            storage.remove_folder(uri)
    return {
        "checkpoint_bytes": size,
        "steps_per_upload": per_upload,
        "steps_per_second": {name: round(statistics.median(turns), 3) for name, turns in rates.items()},
        "ratios": {name: ratios_of(rates, name) for name in BARS},
    }


def ratios_of(rates: Mapping[str, list[float]], name: str) -> list[float]:
    """Returns the least, the median and the largest of the ratios of turns."""
    turns = sorted(rate / without for rate, without in zip(rates[name], rates[NONE], strict=True))
    return [round(value, 3) for value in (turns[0], statistics.median(turns), turns[-1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=100, help="steps of a turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine())
    with tempfile.TemporaryDirectory() as folder, ObjectStore(Path(folder)) as store:
        os.environ.update(store.environment)
        store.create_bucket("bucket")
        with ThrottledProxy(store.port, BYTES_PER_SECOND) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy.url
            clock = time.perf_counter if arguments.clock == "wall" else time.process_time
            result = benchmark(arguments.steps, arguments.repeats, Path(folder), clock)
    for name, bar in BARS.items():
        least, ratio, most = result["ratios"][name]
        met = "met" if ratio >= bar else "MISSED"
        print(f"{name} / none: {ratio:.3f} of the steps/s (turns: {least} to {most}; bar {bar}: {met})")
    report("checkpoints", {f"{name} / none": found[1] for name, found in result["ratios"].items()})
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
