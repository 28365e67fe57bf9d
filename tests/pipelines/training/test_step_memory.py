"""The memory of a step that is counted without doing it, against what torch's profiler sees of one that is done, and
against peaks measured on a GPU."""

import dataclasses
import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from groupvit.config import LossConfig, Precision
from groupvit.model import GroupViT
from groupvit.optim import build_optimizer
from groupvit.training import Batch, train_step
from pipelines.experiments.catalogue import EXPERIMENTS
from pipelines.experiments.config import ExperimentConfig, TrainingConfig
from pipelines.training.batches import NUM_AHEAD
from pipelines.training.sample_batch import assumed_batch
from pipelines.training.step_memory import AVERAGE, INPUTS, PARAMETERS, step_memory
from tests.support.pages import ROOT

GIB = 2**30


def of_demo(*, num_workers: int = 1, ema_decay: float | None = None, **changes: object) -> ExperimentConfig:
    demo = EXPERIMENTS["demo"]()
    training = dataclasses.replace(demo.training, num_workers=num_workers, ema_decay=ema_decay)
    image = dataclasses.replace(demo.model.image, **changes)  # pyright: ignore
    return dataclasses.replace(demo, training=training, model=dataclasses.replace(demo.model, image=image))


def peak_of_a_real_step(config: ExperimentConfig, batch: Batch, precision: Precision, trace: Path) -> int:
    """Bytes of all tensors at the fullest moment of two real steps, by torch's profiler. The first makes the
    moments."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = GroupViT(config.model).train()
        optimizer = build_optimizer(model, config.optimizer)
        ahead = [batch.map(torch.Tensor.clone) for _ in range(NUM_AHEAD + 1)]
        for step in range(2):
            train_step(
                model,
                optimizer,
                (batch.map(torch.Tensor.clone) for _ in range(config.slices_per_step)),
                loss=config.loss,
                seed=0,
                step=step,
                precision=precision,
                clip_grad_norm=config.optimizer.clip_grad_norm,
            )
        del ahead
    profiler.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "config", [of_demo(), of_demo(activation_checkpointing=True, depths=(8, 0))], ids=["demo", "recomputed"]
)
def test_it_is_that_of_a_real_step(config: ExperimentConfig, precision: Precision, tmp_path: Path) -> None:
    batch = assumed_batch(config)
    batch = batch.map(lambda x: torch.zeros_like(x) if x.dtype == torch.float32 else x)
    counted = step_memory(config, batch, precision, on_gpu=False).total
    with mock.patch("groupvit.gradients._free", []):  # without memory from earlier tests
        real = peak_of_a_real_step(config, batch, precision, tmp_path / "trace.json")
    assert counted == pytest.approx(real, rel=0.05)


def test_it_is_that_of_a_gpu() -> None:
    """Of the paper's model in bfloat16, one micro-batch. Four batches in float32 lay on the GPU all the time."""
    speed = json.loads((ROOT / "docs/gpu/first_look.json").read_text())["speed"]
    for size, num_prompts in ((256, 0), (1024, 3)):
        config = ExperimentConfig(
            name="paper",
            loss=LossConfig(num_prompts=num_prompts),
            training=TrainingConfig(global_batch_size=size),
        )
        config = dataclasses.replace(config, ingest=dataclasses.replace(config.ingest, slice_size=size))
        counted = step_memory(config, assumed_batch(config), "bfloat16", on_gpu=True)
        total = counted.total - counted.items[INPUTS] + 4 * size * 3 * 224 * 224 * 4
        measured = speed[f"batch {size} K {num_prompts} eager"]["peak_gib"]
        assert total / GIB == pytest.approx(measured, rel=0.05), (size, num_prompts)


def test_items_are_those_of_the_model_and_of_its_workers() -> None:
    alone = step_memory(of_demo(), assumed_batch(of_demo()), "float32", on_gpu=False)
    assert alone.num_parameters == sum(parameter.numel() for parameter in GroupViT(of_demo().model).parameters())
    buffers = sum(buffer.nbytes for buffer in GroupViT(of_demo().model).buffers())
    assert alone.items[PARAMETERS] == 4 * alone.num_parameters + buffers
    assert alone.items[AVERAGE] == alone.reduced_bytes == alone.gathered_bytes == 0
    averaged = of_demo(ema_decay=0.99, num_workers=2)
    together = step_memory(averaged, assumed_batch(averaged), "float32", on_gpu=False)
    assert together.items[AVERAGE] == alone.items[PARAMETERS]
    assert together.reduced_bytes >= 4 * alone.num_parameters and together.gathered_bytes > 0
    assert not torch.distributed.is_initialized()
