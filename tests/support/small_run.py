"""A small run that is soon done, and what can be asked of it afterwards."""

import collections
import dataclasses
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines.dataset.format import sample_id, write_dataset
from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import ExperimentConfig

NUM_SAMPLES, NUM_STEPS, BATCH = 96, 30, 16  # 5 epochs
NUM_CAPTIONS = 5  # of an image: each is drawn in one epoch, and the weights tell which


def write_noise(uri: str) -> str:
    """A data set of noise with captions: what matters is which sample comes when, and with which caption."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(NUM_SAMPLES):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file, "JPEG")
        image = file.getvalue()
        captions = [f"a thing number {index}, said the {number}th time" for number in range(NUM_CAPTIONS)]
        row = {
            "sample_id": sample_id(image, *captions),
            "image": image,
            "captions": captions,
            "nouns": [["thing", f"t{index}", f"n{number}"] for number in range(NUM_CAPTIONS)],
        }
        rows.append({**row, "width": 40, "height": 40})
    write_dataset(uri, rows, rows_per_group=10)  # 96 is not a multiple: a short row group is among them
    return uri


def make_config(data: str, runs: Path, name: str, *, num_workers: int | str, **training: Any) -> ExperimentConfig:
    base = debug()
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, sources=(data,)),
        ingest=dataclasses.replace(base.ingest, slice_size=4, window_size=32),
        tracking=dataclasses.replace(base.tracking, experiment="chaos", system_metrics_every_n_seconds=None),
        training=dataclasses.replace(
            base.training,
            **{
                "num_steps": NUM_STEPS,
                "global_batch_size": BATCH,
                "num_workers": num_workers,
                "checkpoint_every_n_steps": 7,
                "runs_folder": str(runs),
                "run_name": name,
                "record_samples": str(runs / "samples" / name),
                "ema_decay": 0.9,
                **training,
            },
        ),
    )


def as_flags(config: ExperimentConfig) -> list[str]:
    """The flags that make `debug` the config."""
    flags = ["--data.sources", *config.data.sources, "--tracking.experiment", config.tracking.experiment]
    flags += ["--tracking.system-metrics-every-n-seconds", "None"]
    for part, names in {
        "ingest": ("slice_size", "window_size"),
        "training": (
            *("num_steps", "global_batch_size", "num_workers", "checkpoint_every_n_steps", "max_failures"),
            *("runs_folder", "run_name", "record_samples", "ema_decay"),
        ),
    }.items():
        for name in names:
            flags += [f"--{part}.{name.replace('_', '-')}", str(getattr(getattr(config, part), name))]
    return flags


def consumed(runs: Path, name: str) -> dict[tuple[int, int], tuple[list[str], list[int]]]:
    """(step, slice) → (sample ids, epochs). What was done twice, because a run was interrupted, must be the same."""
    found: dict[tuple[int, int], tuple[list[str], list[int]]] = {}
    for file in (runs / "samples" / name).iterdir():
        for text in file.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # cut by the kill
            value = (line["ids"], line["epochs"])
            assert found.setdefault((line["step"], line["slice"]), value) == value
    return found


def repeated_steps(runs: Path, name: str) -> list[int]:
    """Steps with a slice that was consumed more than once, ascending."""
    lines = [line for file in (runs / "samples" / name).iterdir() for line in file.read_text().splitlines()]
    counts = collections.Counter((json.loads(line)["step"], json.loads(line)["slice"]) for line in lines)
    return sorted({step for (step, _), count in counts.items() if count > 1})


def last_recorded_step(runs: Path, name: str) -> int:
    folder = runs / "samples" / name
    steps = [file.read_bytes().count(b"\n") // 2 for file in folder.glob("rank-*")]  # 2 slices per worker and step
    return max(steps, default=0)


def wait_for_step(runs: Path, name: str, step: int, alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while last_recorded_step(runs, name) < step:
        assert alive(), "the run ended before it was to be killed"
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.01)


def assert_every_epoch_saw_every_sample_once(runs: Path, name: str) -> None:
    samples = consumed(runs, name)
    assert len(samples) == NUM_STEPS * BATCH // 4
    seen: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for ids, epochs in samples.values():
        for sample, epoch in zip(ids, epochs, strict=True):
            seen[epoch][sample] += 1
    assert sorted(seen) == list(range(NUM_STEPS * BATCH // NUM_SAMPLES))
    for counts in seen.values():
        assert len(counts) == NUM_SAMPLES
        assert set(counts.values()) == {1}


def assert_same_result(folder: Path, expected: Path) -> None:
    last = f"checkpoints/step-{NUM_STEPS:08d}"
    weights, wanted = load_file(folder / last / "model.safetensors"), load_file(expected / last / "model.safetensors")
    assert weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(weights[name], tensor), name
    states = [torch.load(path / last / "optimizer.pt", weights_only=True) for path in (folder, expected)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
