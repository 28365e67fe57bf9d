"""Estimates the hours and the price of a training run from a measured speed.

    groupvit cost gcc_yfcc_30e --instances g5.12xlarge=4 m6i.4xlarge=2 --images-per-second-per-gpu RATE
    groupvit cost gcc_yfcc_30e --instances g5.12xlarge=4 --from-run s3://bucket/runs/trial

There is no default speed: it depends on the GPU. Give one that was measured, or a run of the same model.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from groupvit.config import flatten, to_dict
from pipelines.cluster.instances import INSTANCES, Instance
from pipelines.experiments.config import ExperimentConfig
from pipelines.runs.folder import RunFolder

FORMULA = (
    "hours = num_steps x global_batch_size / (images_per_second_per_gpu x GPUs) / 3600 x (1 + overhead)\n"
    "USD   = hours x sum(count x USD per hour) + storage_gb x USD per GB and month x hours / 730\n"
    "        + egress_gb x USD per GB"
)

_HOURS_PER_MONTH = 730


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostConfig:
    """Estimates the hours and the price of a training run."""

    instances: tuple[str, ...] = ()
    """Machines, as NAME=COUNT for each kind, e.g. g5.12xlarge=4 m6i.4xlarge=2. Every GPU trains; machines without
    GPUs read data."""
    images_per_second_per_gpu: float | None = None
    """Measured training speed of one GPU of these machines, in images per second, with this experiment's model and
    precision."""
    from_run: str | None = None
    """Run of the same model on the same kind of GPU: RUNS/NAME, local or s3://. Its newest checkpoint gives the speed:
    images trained on, divided by seconds."""
    price: tuple[str, ...] = ()
    """Price as NAME=USD per hour. It replaces the listed on-demand price, e.g. for spot machines or another region. A
    machine that is not listed needs its size, too: NAME:GPUS:VCPUS=USD."""
    overhead: float = 0.0
    """Share of the training time to add for start-up and for steps repeated after spot machines were lost. It is not
    known in advance."""
    storage_gb: float = 0.0
    """Size of the data sets and checkpoints in the object store during the run, in GB."""
    usd_per_gb_month: float = 0.023
    """Price of storage: S3 Standard, us-east-1, first 50 TB. The value is not read from AWS: check it."""
    egress_gb: float = 0.0
    """Size of the data that leaves the region, in GB. Reading from S3 within the region is free."""
    usd_per_gb_egress: float = 0.09
    """Price of data sent from AWS to the internet: us-east-1, first 10 TB a month. The value is not read from AWS:
    check it."""


def estimate(config: CostConfig, experiment: ExperimentConfig) -> dict[str, Any]:
    """Prints the estimate with its formula. Returns the summary that `--json` prints.

    Raises ValueError if a machine or its price is unknown, or if no speed is given.
    """
    _check(config)
    fleet = _fleet(config)
    num_gpus = sum(count * instance.num_gpus for instance, count in fleet)
    num_vcpus = sum(count * instance.num_vcpus for instance, count in fleet)
    training = experiment.training
    if not num_gpus:
        raise ValueError(f"instances={' '.join(config.instances)} have no GPU: give machines that train, too")
    unit = experiment.ingest.slice_size * num_gpus
    if training.global_batch_size % unit:
        raise ValueError(
            f"instances={' '.join(config.instances)} have {num_gpus} GPUs, and training.global_batch_size="
            f"{training.global_batch_size} is not a multiple of ingest.slice_size x GPUs = "
            f"{experiment.ingest.slice_size} x {num_gpus} = {unit}: give machines with a number of GPUs that divides "
            f"{training.global_batch_size // experiment.ingest.slice_size}"
        )
    rate, rate_source = _rate(config, experiment)

    num_images = training.num_steps * training.global_batch_size
    hours = num_images / (rate * num_gpus) / 3600 * (1 + config.overhead)
    usd_per_hour = sum(count * instance.usd_per_hour for instance, count in fleet)
    machines_usd = hours * usd_per_hour
    storage_usd = config.storage_gb * config.usd_per_gb_month * hours / _HOURS_PER_MONTH
    egress_usd = config.egress_gb * config.usd_per_gb_egress
    total_usd = machines_usd + storage_usd + egress_usd

    gpus = f"{num_gpus} GPU{'s' if num_gpus > 1 else ''}"
    lines = [
        *FORMULA.splitlines(),
        "",
        f"images    {training.num_steps:,} steps x {training.global_batch_size:,} = {num_images:,}",
        f"speed     {rate:,.1f} images/s per GPU ({rate_source}); {gpus} are taken to be {num_gpus} times as fast",
        f"ingest    must give {rate * num_gpus:,.0f} images/s: {rate * num_gpus / num_vcpus:,.1f} for each of "
        f"{num_vcpus} vCPUs",
        f"hours     {num_images:,} / ({rate:,.1f} x {num_gpus}) / 3600 x (1 + {config.overhead:g}) = {hours:,.1f} "
        f"({hours / 24:,.1f} days)",
        *(
            f"machines  {count} x {instance.name} at {instance.usd_per_hour:g} USD/h = "
            f"{hours * count * instance.usd_per_hour:,.0f} USD ({instance.source}; {instance.region}, {instance.date})"
            for instance, count in fleet
        ),
        f"storage   {config.storage_gb:,g} GB x {config.usd_per_gb_month:g} x {hours:,.1f} / {_HOURS_PER_MONTH} = "
        f"{storage_usd:,.2f} USD",
        f"egress    {config.egress_gb:,g} GB x {config.usd_per_gb_egress:g} = {egress_usd:,.2f} USD",
        f"total     {total_usd:,.0f} USD",
    ]
    print("\n".join(lines))
    return {
        "experiment": experiment.name,
        "num_images": num_images,
        "num_gpus": num_gpus,
        "images_per_second_per_gpu": rate,
        "rate_source": rate_source,
        "hours": round(hours, 3),
        "usd_per_hour": round(usd_per_hour, 4),
        "machines_usd": round(machines_usd, 2),
        "storage_usd": round(storage_usd, 2),
        "egress_usd": round(egress_usd, 2),
        "total_usd": round(total_usd, 2),
        "formula": FORMULA,
    }


def _check(config: CostConfig) -> None:
    if not config.instances:
        raise ValueError("instances is empty: give the machines, e.g. --instances g5.12xlarge=4")
    for name in ("overhead", "storage_gb", "usd_per_gb_month", "egress_gb", "usd_per_gb_egress"):
        value = getattr(config, name)
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}={value} is not an amount: give 0 or more")


def _fleet(config: CostConfig) -> list[tuple[Instance, int]]:
    """Returns each kind of machine with its count."""
    known = {**INSTANCES, **_given_prices(config.price)}
    fleet = []
    for text in config.instances:
        found = re.fullmatch(r"(?P<name>[^=]+)=(?P<count>\d+)", text)
        if found is None or int(found["count"]) == 0:
            raise ValueError(f"instances={text!r} says no number of machines: give NAME=COUNT, e.g. g5.12xlarge=4")
        if found["name"] not in known:
            raise ValueError(
                f"instances={text!r}: no price of {found['name']} is known; give --price "
                f"{found['name']}:GPUS:VCPUS=USD_PER_HOUR, or one of {', '.join(INSTANCES)}"
            )
        fleet.append((known[found["name"]], int(found["count"])))
    return fleet


def _given_prices(texts: Sequence[str]) -> Mapping[str, Instance]:
    """Returns the machines of `--price`, by name."""
    given = {}
    for text in texts:
        found = re.fullmatch(r"(?P<name>[^=:]+)(?::(?P<gpus>\d+):(?P<vcpus>[1-9]\d*))?=(?P<usd>\d+(\.\d+)?)", text)
        if found is None:
            raise ValueError(f"price={text!r} is not a price: give NAME=USD_PER_HOUR, e.g. g5.12xlarge=2.2")
        name, listed = found["name"], INSTANCES.get(found["name"])
        if found["gpus"] is None and listed is None:
            raise ValueError(
                f"price={text!r}: {name} is not listed; give its size too, {name}:GPUS:VCPUS={found['usd']}"
            )
        given[name] = Instance(
            name=name,
            num_gpus=listed.num_gpus if listed and found["gpus"] is None else int(found["gpus"]),
            gpu=listed.gpu if listed else None,
            num_vcpus=listed.num_vcpus if listed and found["vcpus"] is None else int(found["vcpus"]),
            usd_per_hour=float(found["usd"]),
            region="your region",
            date="now",
            source="given",
        )
    return given


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
