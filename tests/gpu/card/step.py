"""The project's training step, as the checks use it. What changes in its interface is adapted here."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import get_args
from unittest import mock

import torch
from torch import Tensor

import groupvit.training
from groupvit.config import LossConfig, ModelConfig, OptimizerConfig, Precision
from groupvit.model import GroupViT
from groupvit.optim import build_optimizer, set_learning_rate
from groupvit.training import Batch, train_step
from groupvit.transforms import finish
from pipelines.ingest.plan import Slice
from pipelines.training.loop import to_batch
from tests.gpu.card.device import Device
from tests.gpu.card.report import SkippedError

LEARNING_RATE, CLIP_GRAD_NORM = 1e-5, 5.0

Step = Callable[[Sequence[Batch], int], dict[str, Tensor]]
"""Micro-batches and the number of prompts → metrics, after an update."""


def make_step(device: Device, model: GroupViT, precision: str) -> Step:
    """The whole step: towers, losses, backward, clipping, AdamW."""
    optimizer = build_optimizer(model, OptimizerConfig())
    set_learning_rate(optimizer, LEARNING_RATE)
    chosen = known_precision(precision)
    number = 0

    def step(micro_batches: Sequence[Batch], num_prompts: int) -> dict[str, Tensor]:
        nonlocal number
        number += 1
        return train_step(
            model,
            optimizer,
            micro_batches,
            loss=LossConfig(num_prompts=num_prompts),
            seed=0,
            step=number,
            precision=chosen,
            clip_grad_norm=CLIP_GRAD_NORM,
        )

    return step


def known_precision(name: str) -> Precision:
    """TF32 is a setting of the process where it is not a precision of the project."""
    known = get_args(Precision)
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    return name if name in known else "float32"  # pyright: ignore[reportReturnType]


def new_model(device: Device, config: ModelConfig) -> GroupViT:
    torch.manual_seed(0)
    return GroupViT(config).to(device.torch).train()


def compile_model(device: Device, model: GroupViT) -> str:
    """Compiles what the project compiles. Returns the name of the function. On the CPU, no code is generated: that
    takes minutes there."""
    compiling = torch.compile if device.is_gpu else partial(torch.compile, backend="aot_eager")
    for name in ("compile_towers", "compile_blocks"):
        if (function := getattr(groupvit.training, name, None)) is not None:
            with mock.patch.object(torch, "compile", compiling):
                function(model)
            return name
    raise AttributeError("groupvit.training compiles nothing")


def batch_of(item: Slice, device: Device, model: ModelConfig) -> Batch:
    return to_batch(item, device.torch, model.text)


def parts_of(item: Slice, number: int) -> list[Slice]:
    """Cuts a slice into equal ones."""
    size = len(item["image"]) // number
    return [{name: x[index * size : (index + 1) * size] for name, x in item.items()} for index in range(number)]


def prepared(slices: Iterator[Slice], device: Device, model: ModelConfig) -> Iterator[Batch]:
    """Makes slices ready as the training loop does."""
    return (batch_of(item, device, model) for item in slices)


def finish_slice(item: Slice, device: Device) -> Tensor:
    """The images of a slice as the model sees them: normalised, and erased."""
    images = torch.tensor(item["image"], device=device.torch)
    return finish(images, torch.from_numpy(item["erase_box"]), torch.from_numpy(item["noise_seed"]))


def noise_of_the_cpu(model: GroupViT) -> None:
    """The model's noise becomes what a generator on the CPU draws, in this order: equal on every device."""
    encoder = model.image_encoder
    draw = getattr(encoder, "draw_noise", None)
    if draw is None:
        raise SkippedError("the image tower draws its noise itself")
    generator, device = torch.Generator().manual_seed(5), model.logit_scale.device

    def uniform(shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=generator).to(device)

    object.__setattr__(encoder, "draw_noise", lambda batch, grid, _: draw(batch, grid, uniform))
