"""The project's training step, as the checks use it. What changes in its interface is adapted here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import torch
from torch import Tensor

from groupvit.compilation import compile_towers
from groupvit.config import LossConfig, ModelConfig, OptimizerConfig, Precision
from groupvit.model import GroupViT
from groupvit.noise import Uniform
from groupvit.optim import build_optimizer, set_learning_rate
from groupvit.precision import float32_products
from groupvit.training import Batch, Towers, train_step
from pipelines.ingest.plan import Slice
from pipelines.training.batches import BatchesAhead, to_batch
from tests.gpu.card.device import Device

LEARNING_RATE, CLIP_GRAD_NORM = 1e-5, 5.0

Step = Callable[[Sequence[Batch], int], dict[str, Tensor]]
"""Micro-batches and the number of prompts → metrics, after an update."""


def make_step(device: Device, model: GroupViT, precision: Precision, towers: Towers | None = None) -> Step:
    """The whole step: towers, losses, backward, clipping, AdamW. `towers`: compiled ones."""
    optimizer = build_optimizer(model, OptimizerConfig())
    set_learning_rate(optimizer, LEARNING_RATE)
    number = 0

    def step(micro_batches: Sequence[Batch], num_prompts: int) -> dict[str, Tensor]:
        nonlocal number
        number += 1
        with float32_products(device.torch, precision):
            return train_step(
                model,
                optimizer,
                micro_batches,
                loss=LossConfig(num_prompts=num_prompts),
                seed=0,
                step=number,
                precision=precision,
                clip_grad_norm=CLIP_GRAD_NORM,
                towers=towers,
            )

    return step


def new_model(device: Device, config: ModelConfig) -> GroupViT:
    torch.manual_seed(0)
    return GroupViT(config).to(device.torch).train()


def compiled(device: Device, model: GroupViT, batch: Batch, precision: Precision) -> Towers:
    """Compiles for micro-batches like this, one per step. On the CPU no code is generated: that takes minutes there."""
    return compile_towers(
        model,
        batch,
        loss=LossConfig(),
        precision=precision,
        accumulates=False,
        backend="inductor" if device.is_gpu else "aot_eager",
    )


def batch_of(item: Slice, device: Device, model: ModelConfig) -> Batch:
    return to_batch(item, device.torch, model.text)


def finished(batch: Batch) -> Tensor:
    """The images as the model sees them, float32 [b,3,H,W]: normalised, and erased."""
    return batch.images if isinstance(batch.images, Tensor) else batch.images.finished()


def parts_of(item: Slice, number: int) -> list[Slice]:
    """Cuts a slice into equal ones."""
    size = len(item["image"]) // number
    return [{name: x[index * size : (index + 1) * size] for name, x in item.items()} for index in range(number)]


@contextmanager
def batches_ahead(slices: Iterator[Slice], device: Device, model: ModelConfig) -> Iterator[Iterator[Batch]]:
    """Makes slices ready as the training loop does, in a thread."""
    with closing(BatchesAhead(slices, device.torch, model.text)) as prepared:
        yield (item.batch for item in prepared)


def noise_of_the_cpu(seed: int, device: torch.device) -> Uniform:
    """The same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=generator).to(device)

    return uniform
