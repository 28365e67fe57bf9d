"""The optimiser: weight decay per parameter, and the learning rate of every step (released recipe, section 7 of the
method).
"""

import math

import torch
from torch import nn

from groupvit.config import OptimizerConfig

LOGIT_SCALES = ("logit_scale", "multi_label_logit_scale")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Make AdamW with two parameter groups, with and without weight decay.

    1-D parameters and biases never decay, the logit scales only with `decay_logit_scales`. Position tables, group
    tokens and token embeddings decay, as in the reference. The caller sets the learning rate before every step.
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if name in LOGIT_SCALES:
            decays = config.decay_logit_scales
        else:
            decays = parameter.ndim != 1 and not name.endswith(".bias")
        (decayed if decays else spared).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, config: OptimizerConfig, *, num_steps: int, global_batch_size: int) -> float:
    """Learning rate of optimiser step `step` (from 0) of `num_steps`.

    A cosine over all steps from the peak rate to the minimum. Linear warm-up replaces its first part, so the cosine has
    already begun when warm-up ends. All three rates are scaled by global batch size / reference batch size.
    """
    batch_scale = global_batch_size / config.reference_batch_size
    if step < config.warmup_steps:
        progress = step / config.warmup_steps
        rate = config.warmup_learning_rate + progress * (config.learning_rate - config.warmup_learning_rate)
    else:
        cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        rate = config.min_learning_rate + cosine * (config.learning_rate - config.min_learning_rate)
    return rate * batch_scale


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
