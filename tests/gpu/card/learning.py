"""It learns: the training loop without Ray on drawn shapes, stopped half way and resumed."""

import dataclasses
import shutil
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipelines.experiments.catalogue import demo
from pipelines.experiments.config import ExperimentConfig
from pipelines.ingest.plan import Slice, plan_ingest
from pipelines.ingest.slices import load_slices
from pipelines.runs.folder import RunFolder
from pipelines.training.loop import WorkerContext, train
from tests.gpu.card.context import Context
from tests.gpu.card.device import Device
from tests.gpu.card.material import write_shapes

NUM_IMAGES, BATCH, LOGGED_EVERY = 512, 32, 10
STEPS_TO_LEARN, LARGEST_SHARE_OF_LOSS = 300, 0.9
"""Share of the first losses that may be left after so many steps. On CPUs it is 0.80."""
AVERAGED = 4
"""Number of logged losses at either end that are averaged."""


def learning(context: Context) -> None:
    data = shapes(context)
    row = context.report.row
    row("a run, and the same resumed half way", partial(_resumed, context, data, deterministic=False))
    row("the same, deterministic", partial(_resumed, context, data, deterministic=True))


def shapes(context: Context) -> str:
    """A data set of drawn shapes, drawn once."""
    folder = context.out / "shapes"
    if not (folder / "dataset.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_shapes(str(folder), NUM_IMAGES)
    return str(folder)


def small_config(data: str, runs: Path, *, num_steps: int, deterministic: bool) -> ExperimentConfig:
    """`demo`, but smaller and with an easier task: it learns in hundreds of steps. One checkpoint is half way.

    Deterministic training is compiled on a GPU, as it is by default.
    """
    base = demo()
    image = dataclasses.replace(base.model.image, image_size=32, width=64, depths=(2, 0))
    text = dataclasses.replace(base.model.text, width=32, depth=1)
    model = dataclasses.replace(base.model, image=image, text=text, embedding_dim=64, projector_width=128)
    training = dataclasses.replace(
        base.training,
        num_steps=num_steps,
        global_batch_size=BATCH,
        num_workers=1,
        precision="float32",
        deterministic=deterministic,
        compile="auto" if deterministic else "off",
        checkpoint_every_n_steps=num_steps // 2,
        log_every_n_steps=LOGGED_EVERY,
        runs_folder=str(runs),
        run_name="run",
    )
    return dataclasses.replace(
        base,
        model=model,
        loss=dataclasses.replace(base.loss, num_prompts=3),
        optimizer=dataclasses.replace(
            base.optimizer, learning_rate=2e-3, reference_batch_size=BATCH, warmup_steps=LOGGED_EVERY
        ),
        data=dataclasses.replace(base.data, sources=(data,)),
        ingest=dataclasses.replace(
            base.ingest, slice_size=BATCH // 2, window_size=2 * BATCH, crop_scale=(0.9, 1.0), color_jitter=0.0
        ),
        training=training,
        tracking=dataclasses.replace(base.tracking, uri=None),
    )


def _resumed(context: Context, data: str, *, deterministic: bool) -> None:
    num_steps, folder = context.sizes.learning_steps, context.out / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    whole, resumed = folder / "whole", folder / "resumed"
    config = small_config(data, whole, num_steps=num_steps, deterministic=deterministic)
    start = time.perf_counter()
    losses = train_alone(config, whole, context.device)
    seconds = time.perf_counter() - start
    name = "deterministic run" if deterministic else "run"
    begin, end = statistics.mean(losses[:AVERAGED]), statistics.mean(losses[-AVERAGED:])
    learned = end <= LARGEST_SHARE_OF_LOSS * begin or num_steps < STEPS_TO_LEARN
    values = {"first losses": begin, "last losses": end, "steps/s": num_steps / seconds}
    context.report.check(name, learned, values, f"the last losses are above {LARGEST_SHARE_OF_LOSS} of the first")

    middle, last = f"step-{num_steps // 2:08d}", f"step-{num_steps:08d}"
    shutil.copytree(whole / "run/checkpoints" / middle, resumed / "run/checkpoints" / middle)
    train_alone(config, resumed, context.device)
    paths = (runs / "run/checkpoints" / last / "model.safetensors" for runs in (whole, resumed))
    error = largest_difference(*paths)
    if deterministic or not context.device.is_gpu:
        context.report.at_most(f"{name}, resumed: the same bits", error, 0.0)
    else:
        context.report.measured(f"{name}, resumed", {"largest difference of a weight": error})


def train_alone(config: ExperimentConfig, runs: Path, device: Device) -> list[float]:
    """Trains the run `run` from its newest checkpoint. Returns the logged losses."""
    run = RunFolder(str(runs / "run"))
    losses: list[float] = []
    first_step = run.latest_step()
    context = WorkerContext(
        rank=0,
        world_size=1,
        device=device.torch,
        group=None,
        precision="float32",
        first_step=first_step,
        slices=slices_from(config, first_step),
        say=lambda line: None,
        tracker=None,
        watch=lambda done, values: losses.append(values["loss"]),
        checkpoint_state={},
    )
    train(config, run, context)
    return losses


def slices_from(config: ExperimentConfig, first_step: int) -> Iterator[Slice]:
    """The run's slices, made in this process."""
    plan = plan_ingest(config)
    per_window = plan.order.window_size // plan.slice_size
    first, last = first_step * config.slices_per_step, config.training.num_steps * config.slices_per_step
    while first < last:
        end = min(first - first % per_window + per_window, last)
        yield from load_slices(plan, first, end)
        first = end


def largest_difference(found: Path, expected: Path) -> float:
    """Between two files of weights."""
    weights, wanted = load_file(found), load_file(expected)
    assert weights.keys() == wanted.keys()
    return max(
        (weights[name].double() - x.double()).abs().max().item() if not torch.equal(weights[name], x) else 0.0
        for name, x in wanted.items()
    )
