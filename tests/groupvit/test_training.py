"""A training step: the same gradient however the global batch is cut, and the loss goes down."""

import dataclasses
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from groupvit.config import LossConfig, OptimizerConfig, Precision, ReducePrecision
from groupvit.model import GroupViT
from groupvit.optim import build_optimizer, set_learning_rate
from groupvit.training import Batch, compute_gradients, train_step
from tests.support.small_model import LOSSES, SMALL, random_batch, small_model
from tests.support.torch_workers import run_workers


def micro_batches(num_prompts: int) -> list[Batch]:
    return [random_batch(4, seed, num_prompts) for seed in range(4)]


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    return batch.map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


Gradients = dict[str, torch.Tensor]


def well_conditioned(model: GroupViT) -> GroupViT:
    """Weights as large as a trained model's: at initialisation all images look alike, and their batch norm amplifies
    rounding.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "projector.hidden" not in name:
                parameter.mul_(4)
    return model


def gradients(
    group: dist.ProcessGroup | None,
    loss: LossConfig,
    dtype: torch.dtype,
    precision: Precision = "float32",
    reduce_precision: ReducePrecision = "exact",
) -> tuple[Gradients, Gradients]:
    """Gradients and batch statistics of the 4 micro-batches, those of index = rank (mod world size) on each worker."""
    rank, world_size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    model = well_conditioned(small_model()).train().to(dtype)
    batches = [in_dtype(batch, dtype) for batch in micro_batches(loss.num_prompts)]
    with (
        mock.patch("groupvit.gradients.BUCKET_BYTES", 50_000),
        mock.patch("groupvit.gradients.LAST_BUCKET_BYTES", 9_000),
    ):
        compute_gradients(
            model,
            batches[rank::world_size],
            loss=loss,
            seed=3,
            step=7,
            precision=precision,
            reduce_precision=reduce_precision,
            group=group,
            num_slices=len(batches),
        )
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return grads, dict(model.named_buffers())


def all_gradients(group: dist.ProcessGroup | None) -> dict[str, tuple[Gradients, Gradients]]:
    cases = {name: gradients(group, loss, torch.float64) for name, loss in LOSSES.items()}
    return {
        **cases,
        "float32": gradients(group, LossConfig(), torch.float32),
        "bfloat16": gradients(group, LossConfig(), torch.float32, precision="bfloat16"),
        "float sums": gradients(group, LossConfig(), torch.float64, reduce_precision="float32"),
    }


def assert_same_gradients(actual: Gradients, expected: Gradients, tolerance: float, where: str) -> None:
    """Entries equal within `tolerance` of the largest entry of the whole gradient."""
    assert actual.keys() == expected.keys()
    largest = max(float(grad.abs().max()) for grad in expected.values())
    errors = {key: float((actual[key] - grad).abs().max()) / largest for key, grad in expected.items()}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= tolerance, f"{where}: {worst} is off by {errors[worst]:.1e}"


def test_the_gradient_does_not_depend_on_workers_and_accumulation() -> None:
    alone = all_gradients(None)
    assert "multi_label_logit_scale" in alone["paper"][0] and "multi_label_logit_scale" not in alone["no prompts"][0]
    for world_size in (2, 3, 4):  # 2 micro-batches each; 2, 1 and 1; and one each
        for worker in run_workers(all_gradients, world_size):
            for name, (grads, statistics) in alone.items():
                where = f"{name}, {world_size} workers"
                tolerance = 0 if name != "float sums" else 1e-10
                assert_same_gradients(worker[name][0], grads, tolerance, where)
                torch.testing.assert_close(worker[name][1], statistics, rtol=0, atol=0, msg=where)


def test_cached_accumulation_equals_one_large_batch() -> None:
    # Without noise (the only thing that depends on how the batch is cut), replaying is the plain gradient.
    config = dataclasses.replace(SMALL, image=dataclasses.replace(SMALL.image, assignment="soft", stochastic_depth=0.0))
    parts = [in_dtype(batch, torch.float64) for batch in micro_batches(3)]
    images = [batch.images for batch in parts if isinstance(batch.images, torch.Tensor)]
    whole = Batch(images=torch.cat(images), token_ids=torch.cat([batch.token_ids for batch in parts]))
    results = []
    for batches in (parts, [whole]):
        model = small_model(config).train().double()
        compute_gradients(model, batches, loss=LossConfig(), seed=0, step=0)
        results.append(
            {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        )
    assert_same_gradients(results[0], results[1], 1e-10, "accumulated")


def test_noise_depends_on_the_step_and_the_seed_only() -> None:
    def gradient(seed: int, step: int) -> torch.Tensor:
        model = small_model().train()
        torch.manual_seed(step * 31 + seed)  # the global generator must not matter
        compute_gradients(model, [random_batch(4, 0)], loss=LossConfig(), seed=seed, step=step)
        grad = model.image_encoder.positions.grad
        assert grad is not None
        return grad

    assert torch.equal(gradient(1, 2), gradient(1, 2))
    assert not torch.equal(gradient(1, 2), gradient(1, 3))
    assert not torch.equal(gradient(1, 2), gradient(2, 2))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_lowers_the_loss(precision: Precision, checkpointing: bool) -> None:
    image = dataclasses.replace(SMALL.image, activation_checkpointing=checkpointing)
    model = small_model(dataclasses.replace(SMALL, image=image)).train()
    optimizer = build_optimizer(model, OptimizerConfig())
    set_learning_rate(optimizer, 2e-3)
    batches = [random_batch(8, seed) for seed in range(2)]
    losses = []
    for step in range(25):
        metrics = train_step(
            model, optimizer, batches, loss=LossConfig(), seed=0, step=step, precision=precision, clip_grad_norm=5.0
        )
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.6 * losses[0]
    assert 1 <= float(metrics["groups_used_0"]) <= 8


def test_activation_checkpointing_is_exact() -> None:
    def grads(checkpointing: bool) -> dict[str, torch.Tensor]:
        image = dataclasses.replace(SMALL.image, activation_checkpointing=checkpointing)
        model = small_model(dataclasses.replace(SMALL, image=image)).train()
        compute_gradients(model, [random_batch(4, 0)], loss=LossConfig(), seed=0, step=0)
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, recomputed = grads(False), grads(True)
    assert all(torch.equal(plain[key], recomputed[key]) for key in plain)
