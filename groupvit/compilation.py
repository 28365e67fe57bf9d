"""Compiles the towers with torch.compile: whole, without a break, in four graphs at most.

There is one graph per tower, and another one for its pass without gradients, which only several micro-batches need. The
shapes of images stay; those of texts differ in every batch, so the text tower's graphs take any.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental import _config as symbolic_shapes

from groupvit.config import LossConfig, Precision
from groupvit.model import GroupViT
from groupvit.noise import NoiseSource, generator_noise
from groupvit.training import Batch, Towers, tower_features


class CompilationError(RuntimeError):
    """The towers cannot be compiled here. The message is one line."""


def compile_towers(
    model: GroupViT,
    batch: Batch,
    *,
    loss: LossConfig,
    precision: Precision,
    accumulates: bool,
    noise: NoiseSource = generator_noise,
    backend: str | Callable[..., Any] = "inductor",
) -> Towers:
    """Compile both towers for micro-batches like `batch`. It takes minutes; a cache makes it seconds the next time.

    Args:
        model: The model, on its device, in training mode. Its parameters have no gradients afterwards.
        batch: A micro-batch with images of the size of all others.
        loss: The losses of the training.
        precision: Precision of the training.
        accumulates: Whether a step has several micro-batches: then passes without gradients are compiled, too.
        noise: Source of the noise of the training.
        backend: What compiles the graphs.

    Raises:
        CompilationError: A tower cannot be compiled, for example without a C compiler.
        torch.OutOfMemoryError: The GPU has no room for the micro-batch.
    """
    device = model.logit_scale.device
    towers = Towers(
        image=torch.compile(model.image_encoder, fullgraph=True, dynamic=False, backend=backend),
        text=torch.compile(model.text_encoder, fullgraph=True, dynamic=True, backend=backend),
    )
    try:
        # Else two sizes of the texts that happen to be equal in this micro-batch would be taken for one.
        with symbolic_shapes.patch(use_duck_shape=False):  # pyright: ignore[reportAttributeAccessIssue]
            if accumulates:
                with torch.no_grad():
                    tower_features(model, towers, batch, loss, noise(0, device), precision)
            features = tower_features(model, towers, batch, loss, noise(0, device), precision)
            torch.autograd.backward(features.tensors, [torch.zeros_like(tensor) for tensor in features.tensors])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers fail in many ways
        raise CompilationError(_in_one_line(error)) from error
    finally:
        model.zero_grad(set_to_none=True)
    return towers


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
