"""Estimates the hours, the cores that read and the price of a training run from measured speeds.

    groupvit cost gcc_yfcc_30e --num-gpus 16 --images-per-second-per-gpu RATE
    groupvit cost gcc_yfcc_30e --num-gpus 16 --from-run s3://bucket/runs/trial --price-per-hour USD

There is no default speed: it depends on the GPU. Give one that was measured, or a run of the same model. There is no
default price: it depends on provider, region and contract.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from groupvit.config import flatten, to_dict
from pipelines.experiments.config import ExperimentConfig
from pipelines.runs.folder import RunFolder
from pipelines.training.memory import busy_share

FORMULA = (
    "hours = num_steps x global_batch_size / (images_per_second_per_gpu x GPUs) / 3600 x (1 + overhead)\n"
    "USD   = hours x price_per_hour"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostConfig:
    """Estimates the hours and the price of a training run."""

    num_gpus: int | None = None
    """Number of GPUs that train. None: as many as the experiment has workers."""
    images_per_second_per_gpu: float | None = None
    """Measured training speed of one of these GPUs, in images per second, with this experiment's model and
    precision."""
    from_run: str | None = None
    """Run of the same model on the same kind of GPU: RUNS/NAME, local or s3://. Its newest checkpoint gives the speed:
    images trained on, divided by seconds."""
    price_per_hour: float | None = None
    """Price of all machines together, in USD per hour: those that train, and those that read data. None: the estimate
    has no price."""
    images_per_second_per_core: float | None = None
    """Measured speed of reading on one CPU core, in images per second. None: the estimate has no number of cores."""
    overhead: float = 0.0
    """Share of the training time to add for start-up and for steps repeated after spot machines were lost. It is not
    known in advance."""


def estimate(config: CostConfig, experiment: ExperimentConfig) -> dict[str, Any]:
    """Prints the estimate with its formula. Returns the summary that `--json` prints.

    Raises ValueError if the number of GPUs does not fit the batch, or if no speed is given.
    """
    training = experiment.training
    num_gpus = training.max_workers if config.num_gpus is None else config.num_gpus
    _check(config, experiment, num_gpus)
    rate, rate_source = _rate(config, experiment)
    busy = busy_share(_slices_per_step(experiment), num_gpus)

    num_images = training.num_steps * training.global_batch_size
    hours = num_images / (rate * num_gpus * busy) / 3600 * (1 + config.overhead)
    total_usd = None if config.price_per_hour is None else hours * config.price_per_hour

    ingest = rate * num_gpus * busy
    per_core = config.images_per_second_per_core
    cores = None if per_core is None else math.ceil(ingest / per_core)
    slice_bytes = ingest * bytes_per_image(experiment)

    gpus = f"{num_gpus} GPU{'s' if num_gpus > 1 else ''}"
    lines = [
        *FORMULA.splitlines(),
        "",
        f"images    {training.num_steps:,} steps x {training.global_batch_size:,} = {num_images:,}",
        f"speed     {rate:,.1f} images/s per GPU ({rate_source}); {gpus} are taken to be {num_gpus * busy:.3g} times as"
        " fast",
        f"ingest    must give {ingest:,.0f} images/s",
        "cores     no speed of reading: give --images-per-second-per-core"
        if cores is None
        else f"cores     {ingest:,.0f} / {per_core:g} = {cores:,} for reading, beside those of the workers",
        f"network   at most {slice_bytes / 1e9:,.2f} GB/s from the cores to the GPUs ({bytes_per_image(experiment):,} "
        "bytes per image); less where both are in one machine",
        f"hours     {num_images:,} / ({rate:,.1f} x {num_gpus}) / 3600 x (1 + {config.overhead:g}) = {hours:,.1f} "
        f"({hours / 24:,.1f} days)",
        "total     no price: give --price-per-hour"
        if total_usd is None
        else f"total     {hours:,.1f} x {config.price_per_hour:g} = {total_usd:,.0f} USD",
    ]
    print("\n".join(lines))
    return {
        "experiment": experiment.name,
        "num_images": num_images,
        "num_gpus": num_gpus,
        "images_per_second_per_gpu": rate,
        "rate_source": rate_source,
        "images_per_second": round(ingest, 1),
        "reading_cores": cores,
        "slice_bytes_per_second": round(slice_bytes),
        "hours": round(hours, 3),
        "total_usd": None if total_usd is None else round(total_usd, 2),
        "formula": FORMULA,
    }


def bytes_per_image(experiment: ExperimentConfig) -> int:
    """Returns the bytes of one image and its texts in a slice: uint8 [3,H,W] and int32 [1+K,T]."""
    pixels = 3 * experiment.model.image.image_size**2
    return pixels + 4 * (1 + experiment.loss.num_prompts) * experiment.model.text.context_length


def _check(config: CostConfig, experiment: ExperimentConfig, num_gpus: int) -> None:
    for name in ("overhead", "price_per_hour"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value} is not an amount: give 0 or more")
    per_core = config.images_per_second_per_core
    if per_core is not None and not 0 < per_core < float("inf"):
        raise ValueError(
            f"images_per_second_per_core={per_core} is not a speed: give the images per second that one core reads"
        )
    if num_gpus < 1:
        raise ValueError(f"num_gpus={num_gpus} do not train: give 1 or more")
    slices = _slices_per_step(experiment)
    if num_gpus > slices:
        raise ValueError(f"num_gpus={num_gpus} is more than the {slices} slices of a batch: give at most {slices}")


def _slices_per_step(experiment: ExperimentConfig) -> int:
    """Returns the number of slices of a batch; with `auto`, the largest that may come out."""
    size = experiment.ingest.slice_size
    return experiment.training.global_batch_size // (1 if size == "auto" else size)


def _rate(config: CostConfig, experiment: ExperimentConfig) -> tuple[float, str]:
    """Returns the images per second of one GPU, and the source of that number."""
    given = config.images_per_second_per_gpu
    if (given is None) == (config.from_run is None):
        raise ValueError(
            f"images_per_second_per_gpu={given} and from_run={config.from_run}: give one of them, a speed that was "
            "measured. For orientation only: the authors' 16 V100 took 2 days for gcc_yfcc_30e, about 311 images/s each"
        )
    if given is not None:
        if not 0 < given < float("inf"):
            raise ValueError(f"images_per_second_per_gpu={given} is not a speed: give images per second, above 0")
        return given, "given"
    assert config.from_run is not None
    return _rate_of_run(config.from_run, experiment)


def _rate_of_run(uri: str, experiment: ExperimentConfig) -> tuple[float, str]:
    run = RunFolder(uri)
    step = run.latest_step()
    if not step:
        raise ValueError(f"from_run={uri} has no checkpoint: give a run's folder, RUNS/NAME, that has trained")
    state = run.read_state(step)
    theirs = state["config"]
    if theirs["training"]["device"] == "cpu":
        raise ValueError(f"from_run={uri} trained on CPUs, which says nothing of a GPU: give a run on GPUs")
    for name, value in _fixes_the_speed(to_dict(experiment)).items():
        if (name, value) == ("ingest.slice_size", "auto"):
            continue  # the run has what it chose on these GPUs
        if (other := _fixes_the_speed(theirs).get(name)) != value:
            raise ValueError(
                f"from_run={uri} trained with {name}={other}, {experiment.name} has {value}: its speed says nothing "
                "here; give a run of this experiment, or --images-per-second-per-gpu"
            )
    num_workers = theirs["training"]["num_workers"]
    rate = step * theirs["training"]["global_batch_size"] / state["train_seconds"] / num_workers
    return rate, f"measured: {uri}, {step:,} steps on {num_workers} workers, each counted as one GPU"


def _fixes_the_speed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that determine the speed. Two runs must agree on them for their speeds to be comparable."""
    values = flatten(config)
    names = ("loss.num_prompts", "training.precision", "training.compile", "ingest.slice_size")
    found = {name: value for name, value in values.items() if name.startswith("model.") or name in names}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
