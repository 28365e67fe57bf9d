"""The host never waits for the device between two steps of training."""

import copy
from collections.abc import Callable
from functools import partial

import torch

from groupvit.averaging import update_average
from groupvit.config import OptimizerConfig
from groupvit.optim import build_optimizer
from groupvit.step_guard import StepGuard
from groupvit.training import compute_gradients, train_step
from tests.gpu.check_training import batches
from tests.support.pretend_cuda import Log
from tests.support.small_model import LOSSES, small_model


def expect_no_waits(log: Log) -> None:
    """Looks at the waits since the log was cleared."""
    waits = log.of("sync", "copy")
    assert not waits, f"the host waits: {waits}"


def of_slice(log: Log, *, augment_on: str) -> None:
    [batch] = batches("cuda", 1, LOSSES["paper"], augment_on=augment_on)
    assert not isinstance(batch.images, torch.Tensor)
    batch.images.finished()
    expect_no_waits(log)


def of_gradients(log: Log, *, loss: str, parts: int) -> None:
    model, micro_batches = small_model().to("cuda").train(), batches("cuda", parts, LOSSES[loss])
    log.events.clear()
    compute_gradients(model, micro_batches, loss=LOSSES[loss], seed=0, step=0, precision="bfloat16")
    expect_no_waits(log)


def of_update(log: Log) -> None:
    model, micro_batches = small_model().to("cuda").train(), batches("cuda", 1, LOSSES["paper"])
    optimizer, average = build_optimizer(model, OptimizerConfig()), copy.deepcopy(model)
    guard = StepGuard(3.0, model.logit_scale.device)
    log.events.clear()
    for step in range(2):  # the first makes the optimiser's state
        metrics = train_step(
            model,
            optimizer,
            micro_batches,
            loss=LOSSES["paper"],
            seed=0,
            step=step,
            clip_grad_norm=5.0,
            guard=guard,
        )
        update_average(average, model, 0.9, step, metrics["skipped"])
    expect_no_waits(log)


CHECKS: dict[str, Callable[[Log], None]] = {
    "costs: a slice": partial(of_slice, augment_on="cpu"),
    "costs: a slice augmented on the device": partial(of_slice, augment_on="device"),
    "costs: one micro-batch": partial(of_gradients, loss="paper", parts=1),
    "costs: two micro-batches": partial(of_gradients, loss="paper", parts=2),
    "costs: shared positives": partial(of_gradients, loss="shared positives", parts=1),
    "costs: mixture": partial(of_gradients, loss="mixture", parts=1),
    "costs: clipping, AdamW, skipping and average": of_update,
}
