"""Compiled towers: whole, in few graphs, with the gradients of those that are not compiled."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from groupvit.compilation import CompilationError, compile_towers
from groupvit.config import LossConfig, ModelConfig, Precision
from groupvit.training import Batch, Towers, compute_gradients
from tests.support.small_model import SMALL, random_batch, small_model

CHECKPOINTING = replace(SMALL, image=replace(SMALL.image, activation_checkpointing=True))
CONVOLUTIONAL = replace(
    SMALL, image=replace(SMALL.image, patch_size=8, stem="convolutional", assignment="soft", stochastic_depth=0.0)
)
NUM_GRAPHS = 4
"""Of each tower, with gradients and without."""
BACKEND = "aot_eager"
"""Runs the graphs as they are, with their backward passes."""


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()
    counters.clear()


def num_graphs() -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def gradients(
    config: ModelConfig, loss: LossConfig, precision: Precision, batches: list[Batch], *, compiled: bool = False
) -> dict[str, torch.Tensor]:
    """The gradients of several steps of two micro-batches, added up."""
    model = small_model(config).train()
    towers = Towers.of(model)
    if compiled:
        towers = compile_towers(model, batches[0], loss=loss, precision=precision, accumulates=True, backend=BACKEND)
    total: dict[str, torch.Tensor] = {}
    for step, pair in enumerate(zip(batches[::2], batches[1::2], strict=True)):
        model.zero_grad(set_to_none=True)
        compute_gradients(model, pair, loss=loss, seed=1, step=step, precision=precision, towers=towers)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, torch.zeros(())) + parameter.grad
    return total


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        (SMALL, "float32"),
        pytest.param(CHECKPOINTING, "bfloat16", marks=pytest.mark.slow),
        pytest.param(CONVOLUTIONAL, "float32", marks=pytest.mark.slow),
    ],
    ids=["hard", "checkpointing in bfloat16", "convolutional"],
)
def test_towers_compile_whole_in_few_graphs(config: ModelConfig, precision: Precision) -> None:
    batches = [random_batch(4, seed) for seed in range(6)]  # texts of other lengths in each
    compiled = gradients(config, LossConfig(), precision, batches, compiled=True)
    assert num_graphs() == NUM_GRAPHS
    tolerance = 1e-5 if precision == "float32" else 0.05
    plain = gradients(config, LossConfig(), precision, batches)
    assert compiled.keys() == plain.keys()
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in plain.items():
        assert float((compiled[name] - gradient).abs().max()) < tolerance * largest, name


def test_what_cannot_be_compiled_is_said_in_one_line_and_leaves_no_gradients() -> None:
    def refuse(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        raise OSError("no compiler\nwas found")

    model = small_model().train()
    with pytest.raises(CompilationError, match="no compiler") as error:
        compile_towers(
            model, random_batch(2, 0), loss=LossConfig(), precision="float32", accumulates=False, backend=refuse
        )
    assert "\n" not in str(error.value)
    assert all(parameter.grad is None for parameter in model.parameters())
