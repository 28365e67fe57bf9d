"""What a run or sweep cannot change once it has started, and how older ones go on."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from groupvit.config import flatten, to_dict
from pipelines.experiments.amendments import check_amendments
from pipelines.experiments.config import ExperimentConfig

_CHOICES = {"ingest.resize": ("torch", "pillow"), "training.reduce_precision": ("exact", "float32")}
"""Fields whose value may be `auto`: what it means for a new run, and for one that started before the field existed."""


def fixes_the_result(config: ExperimentConfig) -> dict[str, Any]:
    """Returns the fields that a run cannot change. The others (workers, cadences, ...) may differ at every start."""
    training = (
        *("num_steps", "global_batch_size", "seed", "precision", "reduce_precision", "deterministic", "ema_decay"),
        "max_grad_norm_ratio",
    )
    free_ingest = ("max_processes", "prefetch_slices", "max_corrupt_fraction")
    values = flatten(to_dict(config))
    return {
        name: value
        for name, value in values.items()
        if name.startswith(("model.", "loss.", "optimizer."))
        or name in ("data.weights", "data.caption_mix", "data.seed", *(f"training.{field}" for field in training))
        or (name.startswith("ingest.") and name.removeprefix("ingest.") not in free_ingest)
    }


def before_there_was_a_choice() -> dict[str, Any]:
    """Returns what the code did before a field of `fixes_the_result` existed, which a run or sweep without it goes on
    with: the field's default, except where that is `auto`."""
    return fixes_the_result(ExperimentConfig(name="")) | {name: old for name, (_, old) in _CHOICES.items()}


def settled(config: ExperimentConfig, fixed: Mapping[str, Any] | None) -> ExperimentConfig:
    """Replaces `auto` by what it means for a run or sweep.

    Args:
        config: The config.
        fixed: The fields with which it was started; fields may be missing that did not exist then. None: a new run.
    """
    ingest, training = config.ingest, config.training

    def value(name: str, given: str) -> Any:
        new, old = _CHOICES[name]
        return given if given != "auto" else new if fixed is None else fixed.get(name, old)

    return dataclasses.replace(
        config,
        ingest=dataclasses.replace(ingest, resize=value("ingest.resize", ingest.resize)),
        training=dataclasses.replace(
            training, reduce_precision=value("training.reduce_precision", training.reduce_precision)
        ),
    )


def amended(config: ExperimentConfig, texts: Sequence[str]) -> ExperimentConfig:
    """Returns the config with the amendments that a run has recorded, in place of its own. Raises ValueError if it
    cannot follow them."""
    check_amendments(texts, num_steps=config.training.num_steps, num_sources=len(config.data.sources))
    return dataclasses.replace(config, amendments=tuple(texts))
