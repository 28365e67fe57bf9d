"""The slice size of a run: what `ingest.slice_size=auto` chooses, and what to change if a slice does not fit.

The choice fixes the result, like a slice size that was given: the first start records it in run.json, and later starts
keep it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.experiments.config import ExperimentConfig, validate
from pipelines.training.memory import USABLE_SHARE, Device, Numbers, fits, slice_sizes, step_bytes

_GIB = 2**30


def with_slice_size(config: ExperimentConfig, size: int) -> ExperimentConfig:
    """Returns the config with this slice size."""
    return dataclasses.replace(config, ingest=dataclasses.replace(config.ingest, slice_size=size))


def with_recorded_slice_size(config: ExperimentConfig, description: Mapping[str, Any] | None) -> ExperimentConfig:
    """Returns the config with the slice size in a run's description; unchanged if the run has not started.

    Raises ValueError if the workers, whose number may have changed, do not get whole slices of that size.
    """
    if description is None:
        return config
    size = description["fixed"]["ingest.slice_size"]
    config = with_slice_size(config, size)
    try:
        validate(config)
    except ValueError as error:
        raise ValueError(f"{error} (run {config.run_name!r} began with ingest.slice_size={size})") from None
    return config


def choose_slice_size(config: ExperimentConfig, devices: Sequence[Device]) -> tuple[ExperimentConfig, str]:
    """Returns the config with the largest slice size that fits each of the devices by prediction, and a line that says
    why.

    Raises ValueError if none does.
    """
    numbers = _numbers(config, devices)
    least = min((_for_a_worker(config, device) for device in devices), key=lambda device: device.memory)
    memory = f"{least.memory / _GIB:.1f} GiB of {least.name}"
    size = max((size for size in slice_sizes(config) if fits(config, size, least.memory, numbers)), default=None)
    if size is None:
        raise ValueError(
            f"ingest.slice_size=auto: a step with a slice of 1 takes {_about(config, 1, numbers)}, more than "
            f"{USABLE_SHARE:.0%} of the {memory}: give more training.num_workers, a smaller model, or a number"
        )
    why = f"{config.run_name}: ingest.slice_size=auto is {size}: a step takes {_about(config, size, numbers)} of the "
    return with_slice_size(config, size), why + memory


def out_of_memory(config: ExperimentConfig, device: Device) -> str:
    """Returns a line that says what to change after a worker ran out of the memory of `device`. The config has the
    run's precision."""
    device = _for_a_worker(config, device)
    size, numbers = config.slice_size, Numbers.of(config.training.precision, on_gpu=device.is_gpu)
    changes = [
        f"--ingest.slice-size {smaller} ({_about(config, smaller, numbers)})"
        for smaller in slice_sizes(config)
        if smaller <= size // 2 and fits(config, smaller, device.memory, numbers)
    ][-1:]
    if not config.model.image.activation_checkpointing:
        changes.append("--model.image.activation-checkpointing True")
    others = ", and other processes may use it, too" if fits(config, size, device.memory, numbers) else ""
    advice = (
        f"start another --training.run-name with {' or '.join(changes)}, because they change the result of this one"
        if changes
        else "give more --training.num-workers"
    )
    return (
        f"out of memory: {device.name} has {device.memory / _GIB:.1f} GiB for a worker{others}; a step with "
        f"ingest.slice_size={size} in {config.training.precision} takes {_about(config, size, numbers)}: {advice}"
    )


def _for_a_worker(config: ExperimentConfig, device: Device) -> Device:
    """A worker has its share of a GPU, and never more than one."""
    share = min(config.training.gpus_per_worker, 1.0) if device.is_gpu else 1.0
    return dataclasses.replace(device, memory=share * device.memory)


def _numbers(config: ExperimentConfig, devices: Sequence[Device]) -> Numbers:
    """The precision that the workers will choose on these devices, as settle_precision does."""
    precision = config.training.precision
    if precision == "auto":
        precision = "bfloat16" if all(device.has_bfloat16 for device in devices) else "float32"
    return Numbers.of(precision, on_gpu=all(device.is_gpu for device in devices))


def _about(config: ExperimentConfig, size: int, numbers: Numbers) -> str:
    needed = step_bytes(config, size, numbers)
    return f"about {needed / _GIB:.1f} GiB" if needed > 0.1 * _GIB else f"about {needed / 2**20:.0f} MiB"
