"""Checks a whole training without its GPUs: data, memory of a GPU, cores, network, hours and bytes of checkpoints.

    groupvit pretrain gcc_yfcc_30e --data s3://bucket/cc3m --training.num-workers 64 --ingest.slice-size 64
    --dry-run.gpu H100

It takes seconds on a laptop. Nothing is written.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from pipelines.console.findings import Finding, failure_of, show, summary_of
from pipelines.console.tables import aligned
from pipelines.errors import PartlyDone
from pipelines.experiments.config import ExperimentConfig, validate
from pipelines.runs.folder import RunFolder
from pipelines.training.cards import CARDS, GIB, IMAGES_PER_SECOND_PER_CORE, device_of, estimated_speed
from pipelines.training.cost import bytes_per_image
from pipelines.training.dry_run_config import DryRunConfig
from pipelines.training.gpu import describe
from pipelines.training.job import check_places, with_absolute_paths
from pipelines.training.memory import USABLE_SHARE, Device
from pipelines.training.pretrain import open_datasets
from pipelines.training.sample_batch import assumed_batch, read_batch
from pipelines.training.slice_size import choose_slice_size
from pipelines.training.step_memory import StepMemory, step_memory

MOST_SLICES_PER_SECOND = 100.0
"""Slices that one coordinator of Ray is sure to deliver per second (docs/performance.md, "Where each limit lies")."""


def dry_run(config: ExperimentConfig, options: DryRunConfig) -> dict[str, Any]:
    """Checks `config`, and prints one line per finding and the memory of a worker, item by item.

    Returns what `--json` prints. Raises PartlyDone with it if something cannot work, ValueError for invalid options.
    """
    device = _device(config, options)
    findings = [_configuration(config)]
    config = with_absolute_paths(config)
    data = _data(config)
    findings += [data, _runs_folder(config)]
    if findings[0].status == "fault":
        show(findings)
        return _concluded(findings, {})
    if config.ingest.slice_size == "auto":
        config, why = choose_slice_size(config, [device])
        findings.append(Finding(check="slice size", status="OK", text=why.partition(": ")[2]))
    show(findings)
    more, result = _step(config, options, device, data_is_there=data.status == "OK")
    show(more)
    return _concluded([*findings, *more], result)


def _concluded(findings: Sequence[Finding], result: dict[str, Any]) -> dict[str, Any]:
    """Returns what `--json` prints. Raises PartlyDone with it if there is a fault."""
    summary = summary_of(findings) | result
    if (failure := failure_of(findings)) is not None:
        raise PartlyDone(failure, summary)
    return summary


def _device(config: ExperimentConfig, options: DryRunConfig) -> Device:
    if options.gpu is not None:
        if config.training.device == "cpu":
            raise ValueError(f"dry_run.gpu={options.gpu} with training.device=cpu: leave one of them out")
        return device_of(options.gpu)
    if config.training.device != "cpu" and torch.cuda.is_available():
        return describe("cuda:0")
    if config.training.device == "gpu":
        raise ValueError(f"dry_run.gpu: this machine has no GPU: name that of the workers, one of {', '.join(CARDS)}")
    here = describe("cpu")
    return dataclasses.replace(
        here, memory=here.memory / max(min(config.training.max_workers, options.gpus_per_node), 1)
    )


def _configuration(config: ExperimentConfig) -> Finding:
    """The rules across fields. Missing data are a finding of their own."""
    data = config.data if config.data.sources else dataclasses.replace(config.data, sources=("-",), weights=None)
    try:
        validate(dataclasses.replace(config, data=data))
    except ValueError as error:
        return Finding(check="configuration", status="fault", text=str(error))
    training = config.training
    text = f"{config.name}: {training.num_steps:,} steps of {training.global_batch_size:,} images"
    return Finding(check="configuration", status="OK", text=f"{text} on {training.num_workers} workers")


def _data(config: ExperimentConfig) -> Finding:
    if not config.data.sources:
        fix = "give dataset folders, e.g. --data s3://bucket/cc3m"
        return Finding(check="data", status="fault", text="data.sources is empty", fix=fix)
    try:
        total = sum(info.num_samples for info in open_datasets(config))
    except (ValueError, OSError) as error:
        return Finding(check="data", status="fault", text=str(error))
    epochs = config.training.num_steps * config.training.global_batch_size / total
    return Finding(check="data", status="OK", text=f"{total:,} samples: {epochs:,.1f} epochs")


def _runs_folder(config: ExperimentConfig) -> Finding:
    uri = f"{config.training.runs_folder}/{config.run_name}"
    try:
        check_places(RunFolder(uri), config)
    except (ValueError, OSError) as error:
        return Finding(check="runs folder", status="fault", text=str(error))
    return Finding(check="runs folder", status="OK", text=f"{uri} can be written")


def _step(
    config: ExperimentConfig, options: DryRunConfig, device: Device, *, data_is_there: bool
) -> tuple[list[Finding], dict[str, Any]]:
    """What follows from one step of a worker: findings, and what `--json` prints of it."""
    findings: list[Finding] = []
    sample = None
    if data_is_there:
        try:
            sample = read_batch(config)
        except (ValueError, OSError) as error:
            findings.append(Finding(check="data", status="fault", text=str(error)))
    per_core, core_source = options.images_per_second_per_core, "given"
    if per_core is None and sample is not None:
        per_core, core_source = sample.images_per_second, "measured here"
    if per_core is None:
        per_core, core_source = IMAGES_PER_SECOND_PER_CORE, "measured with the paper's augmentation"
    rate, rate_source = options.images_per_second_per_gpu, "given"
    if rate is None:
        rate, rate_source = estimated_speed(config, device.name), "estimated from one H200"
    precision = config.training.precision
    if precision == "auto":
        precision = "bfloat16" if device.has_bfloat16 else "float32"
    batch, texts = assumed_batch(config), "texts of average length"
    if sample is not None:
        batch, texts = sample.batch, "texts of the data"
    memory = step_memory(config, batch, precision, on_gpu=device.is_gpu)
    print("\n".join(["", *_memory_table(memory), ""]))
    checkpoint = 4 * memory.num_parameters * (3 + (config.training.ema_decay is not None))
    findings += [
        _memory(memory, device, f"in {precision}, {texts}"),
        _time(config, rate, rate_source),
        _reading(config, rate, per_core, core_source),
        _network(config, options, memory, rate),
        _checkpoints(config, checkpoint),
    ]
    return findings, {
        "device": device.name,
        "precision": precision,
        "memory": memory.items,
        "memory_total": memory.total,
        "memory_of_device": round(device.memory),
        "num_parameters": memory.num_parameters,
        "checkpoint_bytes": checkpoint,
        "images_per_second_per_worker": rate,
        "images_per_second_per_core": round(per_core, 1),
        "reduced_bytes_per_step": memory.reduced_bytes,
        "gathered_bytes_per_step": memory.gathered_bytes,
    }


def _memory(memory: StepMemory, device: Device, how: str) -> Finding:
    text = f"{memory.total / GIB:.2f} GiB of the {device.memory / GIB:.1f} GiB of {device.name}, {how}"
    if memory.total <= USABLE_SHARE * device.memory:
        return Finding(check="memory", status="OK", text=text)
    fix = "give a smaller --ingest.slice-size, more --training.num-workers, or --model.image.activation-checkpointing"
    return Finding(check="memory", status="warning" if memory.total < device.memory else "fault", text=text, fix=fix)


def _memory_table(memory: StepMemory) -> list[str]:
    rows = [(name, f"{size / GIB:.3f}") for name, size in memory.items.items() if size]
    return aligned(("memory of a worker, at most", "GiB"), [*rows, ("sum", f"{memory.total / GIB:.3f}")])


def _time(config: ExperimentConfig, rate: float | None, source: str) -> Finding:
    training = config.training
    if rate is None:
        text = "unknown: no speed of this model on this device was measured"
        return Finding(check="time", status="OK", text=text, fix="give --dry-run.images-per-second-per-gpu")
    seconds = training.global_batch_size / (rate * training.max_workers)
    hours = training.num_steps * seconds / 3600
    text = f"{hours:,.1f} hours: {seconds:.3g} s a step, {rate:,.0f} images/s for each worker ({source})"
    return Finding(check="time", status="OK", text=text)


def _reading(config: ExperimentConfig, rate: float | None, per_core: float, source: str) -> Finding:
    """Cores that read, and slices that one coordinator deals out."""
    training = config.training
    speed = f"a core reads {per_core:,.0f} images/s ({source})"
    if rate is None:
        return Finding(check="reading", status="OK", text=f"{speed}: divide the images/s of all workers by it")
    images = rate * training.max_workers
    slices = images / config.slice_size
    own = training.max_workers * training.cpus_per_worker
    text = f"{math.ceil(images / per_core):,} cores for {images:,.0f} images/s: {speed}; beside {own:,} CPUs of workers"
    if slices <= MOST_SLICES_PER_SECOND:
        return Finding(check="reading", status="OK", text=text)
    text += f"; {slices:,.0f} slices/s, and Ray is sure to deliver {MOST_SLICES_PER_SECOND:,.0f}"
    fix = "give larger slices, or fewer workers with more images each (docs/performance.md, Where each limit lies)"
    return Finding(check="reading", status="warning", text=text, fix=fix)


def _network(config: ExperimentConfig, options: DryRunConfig, memory: StepMemory, rate: float | None) -> Finding:
    """What a machine receives in a step: gradients and rows from its neighbour in a ring, and slices from readers."""
    workers = config.training.max_workers
    on_node = min(options.gpus_per_node, workers)
    num_nodes = -(-workers // on_node)
    slices = bytes_per_image(config) * config.training.global_batch_size / num_nodes
    exchanged = (workers - 1) / workers * (2 * memory.reduced_bytes + memory.gathered_bytes) if num_nodes > 1 else 0.0
    text = (
        f"{(exchanged + slices) / 1e6:,.0f} MB a step into each of {num_nodes} machines: {exchanged / 1e6:,.0f} MB of "
        f"gradients and embeddings, at most {slices / 1e6:,.0f} MB of slices"
    )
    if rate is not None:
        seconds = config.training.global_batch_size / (rate * workers)
        text += f"; {(exchanged + slices) / seconds / 1e9:,.2f} GB/s"
    return Finding(check="network", status="OK", text=text)


def _checkpoints(config: ExperimentConfig, num_bytes: int) -> Finding:
    training = config.training
    num_saved = -(-training.num_steps // training.checkpoint_every_n_steps)
    kept = num_saved if training.keep_checkpoints is None else min(num_saved, training.keep_checkpoints)
    text = f"{num_bytes / 1e9:.2f} GB each, every {training.checkpoint_every_n_steps:,} steps; {kept:,} are kept: "
    return Finding(check="checkpoints", status="OK", text=f"{text}{(kept + 1) * num_bytes / 1e9:,.2f} GB at most")
