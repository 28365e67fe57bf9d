"""Training: steps, the loop with its checkpoints, and a step of one of several workers."""

import dataclasses
import itertools
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from groupvit.config import LossConfig, ModelConfig, OptimizerConfig, Precision
from groupvit.optim import build_optimizer, set_learning_rate
from groupvit.training import Batch, compute_gradients, train_step
from pipelines.training.batches import to_batch
from pipelines.training.progress import Totals
from tests.support.lone_worker import lone_config, slices, train_alone
from tests.support.pretend_cuda import CUDA, Log, values
from tests.support.small_model import LOSSES, SMALL, small_model

IMAGE_ENCODERS = {
    "hard": SMALL.image,
    "soft": dataclasses.replace(SMALL.image, assignment="soft"),
    "convolutional stem, no residual": dataclasses.replace(
        SMALL.image, patch_size=8, stem="convolutional", group_residual=False, initialisation="fan_in"
    ),
    "checkpointing": dataclasses.replace(SMALL.image, activation_checkpointing=True),
    "no stochastic depth": dataclasses.replace(SMALL.image, stochastic_depth=0.0),
}


def batches(device: str, parts: int, loss: LossConfig) -> list[Batch]:
    items = itertools.islice(slices(0, loss.num_prompts), parts)
    return [to_batch(item, torch.device(device), SMALL.text) for item in items]


def _trained(
    device: str, config: ModelConfig, loss: LossConfig, precision: Precision, parts: int, clip: float | None
) -> dict[str, Tensor]:
    """The loss of the last step and all weights after two steps, on the CPU."""
    model = small_model(config).to(device).train()
    optimizer = build_optimizer(model, OptimizerConfig())
    set_learning_rate(optimizer, 1e-3)
    metrics: dict[str, Tensor] = {}
    for step in range(2):
        metrics = train_step(
            model,
            optimizer,
            batches(device, parts, loss),
            loss=loss,
            seed=3,
            step=step,
            precision=precision,
            clip_grad_norm=clip,
        )
    return {"loss": values(metrics["loss"])} | {name: values(p).detach() for name, p in model.named_parameters()}


def steps(log: Log, *, loss: str, image: str, precision: Precision, parts: int = 2, clip: float | None = 5.0) -> None:
    """Two steps have the CPU's weights in float32. In bfloat16 CUDA converts other operations, so all is finite."""
    config = dataclasses.replace(SMALL, image=IMAGE_ENCODERS[image])
    found = _trained("cuda", config, LOSSES[loss], precision, parts, clip)
    if precision == "bfloat16":
        assert all(x.isfinite().all() for x in found.values())
        return
    for name, expected in _trained("cpu", config, LOSSES[loss], precision, parts, clip).items():
        assert torch.equal(found[name], expected), name


def resumes(log: Log, *, ema_decay: float | None, precision: Precision) -> None:
    """A loop that resumes from a checkpoint has the weights of one that never stopped."""
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = Path(folder) / "whole", Path(folder) / "resumed"
        config = lone_config(
            whole,
            num_steps=4,
            checkpoint_every_n_steps=2,
            global_batch_size=8,
            ema_decay=ema_decay,
            precision=precision,
        )
        train_alone(config, whole, device="cuda", precision=precision)
        (resumed / "small/checkpoints").mkdir(parents=True)
        os.rename(whole / "small/checkpoints/step-00000002", resumed / "small/checkpoints/step-00000002")
        train_alone(config, resumed, device="cuda", precision=precision)
        first, second = (
            load_file(runs / "small/checkpoints/step-00000004/model.safetensors") for runs in (whole, resumed)
        )
    assert all(torch.equal(first[name], second[name]) for name in first)


def _as_one_of_two(check: Callable[[dist.ProcessGroup], None]) -> None:
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        assert dist.group.WORLD is not None
        check(dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def gradients_of_workers(log: Log, *, loss: str, collectives: int) -> None:
    def compute(group: dist.ProcessGroup) -> None:
        model = small_model().to("cuda").train()
        micro_batches = batches("cuda", 2, LOSSES[loss])
        compute_gradients(model, micro_batches, loss=LOSSES[loss], seed=0, step=0, precision="bfloat16", group=group)

    _as_one_of_two(compute)
    assert sum(log.of("collective").values()) == collectives, log.of("collective")


def totals_of_workers(log: Log) -> None:
    def share(group: dist.ProcessGroup) -> None:
        totals = Totals(1, group, CUDA)
        totals.add([next(slices(0, 1))])
        totals.share()

    _as_one_of_two(share)


_PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
CHECKS: dict[str, Callable[[Log], None]] = {
    **{
        f"step: {loss}, {image}, {precision}": partial(steps, loss=loss, image=image, precision=precision)
        for loss, image, precision in itertools.chain(
            itertools.product(["paper"], IMAGE_ENCODERS, _PRECISIONS),
            itertools.product(list(LOSSES)[1:], ["hard"], _PRECISIONS),
        )
    },
    "step: one micro-batch": partial(steps, loss="paper", image="hard", precision="float32", parts=1),
    "step: no clipping": partial(steps, loss="paper", image="hard", precision="float32", parts=1, clip=None),
    "loop: float32": partial(resumes, ema_decay=None, precision="float32"),
    "loop: average": partial(resumes, ema_decay=0.9, precision="float32"),
    "loop: average, bfloat16": partial(resumes, ema_decay=0.9, precision="bfloat16"),
    **{
        f"workers: {loss}": partial(gradients_of_workers, loss=loss, collectives=collectives)
        for loss, collectives in {"paper": 5, "no prompts": 5, "shared positives": 6, "mixture": 6}.items()
    },
    "workers: totals": totals_of_workers,
}
