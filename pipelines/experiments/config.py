"""Configuration of a pretraining run: what is trained, on which data, how, and where it is recorded.

An experiment is a function that returns an `ExperimentConfig` (pipelines/experiments/catalogue.py); flags of the
command line override single fields. Configs are frozen; `validate` checks what spans several fields, once, on the
driver, before Ray starts.
"""

import dataclasses
from typing import Any, Literal

from groupvit.config import (
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionChoice,
    Protocol,
    SegmentationConfig,
    flatten,
    to_dict,
)
from pipelines.benchmarks.names import BenchmarkName
from pipelines.local.folder_names import check_folder_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples, in which proportion and order."""

    sources: tuple[str, ...] = ()
    """Dataset folders (each holds dataset.json): local paths or s3:// URIs. In short, with the two fields below:
    --data [NAME=]URI[:WEIGHT], once for each. An existing folder like year=2020/train has no NAME before it."""
    weights: tuple[float, ...] | None = None
    """Share of each source in the mixture, in the order of `sources`; any positive scale. None: by size, as the paper
    does."""
    names: tuple[str, ...] | None = None
    """What the sources are called in records. None: the last part of each URI."""
    seed: int = 0
    """Fixes the order of samples and every draw of augmentation and prompts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How samples become slices: decoded, augmented, tokenised by Ray Data tasks."""

    slice_size: int = 256
    """Samples of one slice: the unit Ray Data ships and the micro-batch of a worker. Gradients are those of the whole
    global batch whatever the slice size; it sets the memory a worker needs."""
    window_size: int = 1024
    """Samples of one window of the sample order: one process reads, decodes and permutes it. A multiple of
    `slice_size`."""
    augmentation: Literal["deit", "crop_flip"] = "deit"
    """`deit`: RandAugment and random erasing (the paper); `crop_flip`: random resized crop and flip only."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random crop, as a share of the image."""
    color_jitter: float = 0.0
    """Largest change of brightness, contrast and saturation, with `crop_flip`. `deit` has RandAugment instead."""
    prompt_templates: Literal["clip", "plain"] = "clip"
    """`clip`: CLIP's 80 templates (the paper). `plain`: "a photo of a {}." alone; equal nouns then make equal prompts,
    which are encoded once, and small text towers need not learn what the templates have in common."""
    prompt_padding: Literal["caption", "nouns"] = "caption"
    """What fills up where a caption has fewer nouns than there are prompts: the caption (the paper), or its nouns
    again, which says nothing that is not in the image."""
    max_processes: int | None = None
    """Processes that read, one CPU each; fewer while training is the slower part. None: as many as the cluster has CPUs
    beside training and evaluation when the workers start."""
    prefetch_slices: int = 2
    """Slices held ready beside each worker."""
    max_corrupt_fraction: float = 0.01
    """Share of corrupt images (counted, replaced by other samples of the window) above which the run stops."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The run: length, workers, precision, checkpoints."""

    num_steps: int = 209_910
    """Optimiser steps of the whole run."""
    global_batch_size: int = 4096
    """Samples per optimiser step over all workers; every one is a negative for every other."""
    seed: int = 0
    """Fixes the initial weights, and the model's noise (Gumbel, stochastic depth) at every step."""
    num_workers: int = 1
    """Training processes. Changing it changes neither the batches nor, beyond rounding, the result."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto`: GPUs if the cluster has any. One worker uses one GPU (nccl) or `cpus_per_worker` CPUs (gloo)."""
    cpus_per_worker: int = 1
    """CPUs reserved for, and threads used by, a worker."""
    gpus_per_worker: float = 1.0
    """GPUs reserved for a worker, where workers use GPUs. A share, like 0.25, puts several on one GPU, for small
    models: they share its memory."""
    precision: PrecisionChoice = "auto"
    """`bfloat16`: autocast in the towers; parameters, projectors' statistics and losses stay float32. `auto`: bfloat16
    where every worker's device computes it natively, else float32; chosen at the first start, and kept."""
    compile: bool = False
    """Compile the towers with torch.compile: minutes at the start, faster steps on GPUs."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights and save it as the model. None: off (the paper)."""
    runs_folder: str = "runs"
    """Where runs are kept, one folder per run: a local path or s3:// URI; every worker must reach it."""
    run_name: str | None = None
    """Name of the run. The same name continues the run where its last checkpoint left it. None: the experiment's
    name."""
    checkpoint_every_n_steps: int = 1000
    keep_checkpoints: int | None = 3
    """Newest checkpoints kept. None: all."""
    log_every_n_steps: int = 10
    """Cadence of the progress line and of the metrics."""
    max_failures: int = 3
    """Times the workers are restarted from the last checkpoint after one died."""
    show_ray_logs: bool = False
    """Show what Ray's processes log, too: for finding out why something does not start."""
    record_samples: str | None = None
    """Folder for the sample ids each worker consumed at each step (jsonl), to check the order of a run. None: off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go."""

    uri: str | None = "default"
    """MLflow server or database. `default`: MLFLOW_TRACKING_URI if set, else SQLite file mlflow.db in `runs_folder`.
    None: off."""
    experiment: str = "groupvit"
    """MLflow experiment the run belongs to."""
    system_metrics_every_n_seconds: float | None = 10.0
    """Cadence of CPU, memory, disk, network and GPU metrics. None: off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation while the run trains, by workers of its own: the training does not wait for it."""

    every_n_steps: int | None = None
    """Checkpoints of these steps and the last one are evaluated (`--evaluate-every-n-steps` is short for this flag).
    None: off."""
    benchmark: BenchmarkName = "scenes"
    """As for `groupvit evaluate`, and so are the next fields."""
    root: str = ""
    """Folder of the benchmark's data: a local path or s3:// URI that every node can read."""
    protocol: Protocol | None = None
    calibration: str | None = None
    """Scenes on which the background threshold is chosen, anew for every checkpoint."""
    max_scenes: int | None = None
    """Scenes used of each part. None: all."""
    num_pictures: int = 4
    """Scenes drawn of each part."""
    num_workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    registered_model: str | None = "default"
    """Name under which the best checkpoint is registered in MLflow when the run has ended. `default`: the experiment's
    name. None: not registered."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A complete pretraining run."""

    name: str
    """Name of the experiment."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    ingest: IngestConfig = dataclasses.field(default_factory=IngestConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    segmentation: SegmentationConfig = dataclasses.field(default_factory=SegmentationConfig)
    """How the model segments; kept in its checkpoints, used by `evaluate` and `segment`."""

    @property
    def run_name(self) -> str:
        return self.training.run_name or self.name

    @property
    def slices_per_step(self) -> int:
        """G of the sample order: slices of one optimiser step over all workers."""
        return self.training.global_batch_size // self.ingest.slice_size

    @property
    def micro_batches_per_step(self) -> int:
        """Slices one worker consumes per optimiser step."""
        return self.slices_per_step // self.training.num_workers


def validate(config: ExperimentConfig) -> None:
    """ValueError for the first rule that `config` breaks: one line that names the field, its value and what would be
    right."""
    data, ingest, training, evaluation = config.data, config.ingest, config.training, config.evaluation
    for name, value, least in (
        ("training.num_steps", training.num_steps, 1),
        ("training.global_batch_size", training.global_batch_size, 1),
        ("training.num_workers", training.num_workers, 1),
        ("training.cpus_per_worker", training.cpus_per_worker, 1),
        ("training.checkpoint_every_n_steps", training.checkpoint_every_n_steps, 1),
        ("training.keep_checkpoints", 1 if training.keep_checkpoints is None else training.keep_checkpoints, 1),
        ("training.log_every_n_steps", training.log_every_n_steps, 1),
        ("training.max_failures", training.max_failures, 0),
        ("evaluation.every_n_steps", 1 if evaluation.every_n_steps is None else evaluation.every_n_steps, 1),
        ("ingest.slice_size", ingest.slice_size, 1),
        ("ingest.window_size", ingest.window_size, 1),
        ("ingest.prefetch_slices", ingest.prefetch_slices, 0),
        ("ingest.max_processes", 1 if ingest.max_processes is None else ingest.max_processes, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value} is too small: give at least {least}")

    unit = ingest.slice_size * training.num_workers
    if training.global_batch_size % unit:
        lower = training.global_batch_size // unit * unit
        raise ValueError(
            f"training.global_batch_size={training.global_batch_size} is not a multiple of ingest.slice_size x "
            f"training.num_workers = {ingest.slice_size} x {training.num_workers} = {unit}: give "
            + (f"{lower} or {lower + unit}" if lower else f"{unit}, or smaller slices")
        )
    if ingest.window_size % ingest.slice_size:
        raise ValueError(
            f"ingest.window_size={ingest.window_size} is not a multiple of ingest.slice_size={ingest.slice_size}: give "
            f"{-(-ingest.window_size // ingest.slice_size) * ingest.slice_size}"
        )
    gpus = training.gpus_per_worker
    if gpus <= 0 or (gpus > 1 and gpus % 1):
        raise ValueError(
            f"training.gpus_per_worker={gpus} cannot be reserved: give a share between 0 and 1, or a whole number; "
            "--training.device cpu uses none"
        )
    if not 0 <= ingest.max_corrupt_fraction <= 1:
        raise ValueError(f"ingest.max_corrupt_fraction={ingest.max_corrupt_fraction} is no share: give 0 to 1")
    if not 0 < ingest.crop_scale[0] <= ingest.crop_scale[1] <= 1:
        raise ValueError(f"ingest.crop_scale={ingest.crop_scale} is no range within (0, 1]: give e.g. 0.08 1.0")

    if not data.sources:
        raise ValueError("data.sources is empty: give dataset folders, e.g. --data.sources data/train")
    if data.weights is not None and len(data.weights) != len(data.sources):
        raise ValueError(
            f"data.weights={data.weights} has {len(data.weights)} entries for {len(data.sources)} data.sources: "
            f"give {len(data.sources)}"
        )
    if data.names is not None and len(data.names) != len(data.sources):
        raise ValueError(
            f"data.names={data.names} has {len(data.names)} entries for {len(data.sources)} data.sources: "
            f"give {len(data.sources)}"
        )
    if data.weights is not None and min(data.weights) <= 0:
        raise ValueError(
            f"data.weights={data.weights}: every weight must be above 0; leave a source out of data.sources"
        )

    if training.ema_decay is not None and not 0 < training.ema_decay < 1:
        raise ValueError(f"training.ema_decay={training.ema_decay} is outside (0, 1): give e.g. 0.999, or None")
    if config.optimizer.warmup_steps >= training.num_steps and config.optimizer.warmup_steps > 0:
        raise ValueError(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} leaves nothing of training.num_steps="
            f"{training.num_steps}: give less, e.g. {training.num_steps // 10}"
        )
    check_folder_name("training.run_name", config.run_name, reserved=("mlflow.db", "mlflow-artifacts"))
    if evaluation.every_n_steps is not None and evaluation.benchmark in ("all", "imagenet"):
        raise ValueError(
            f"evaluation.benchmark={evaluation.benchmark} is not for every few steps: give one of segmentation"
        )
    if evaluation.every_n_steps is not None and not evaluation.root:
        raise ValueError(
            f"evaluation.every_n_steps={evaluation.every_n_steps} needs data: give evaluation.root, the folder of "
            f"{evaluation.benchmark}"
        )
    if config.tracking.uri == "":
        raise ValueError("tracking.uri is empty: give a URI, `default`, or None for off")


def fixes_the_result(config: ExperimentConfig) -> dict[str, Any]:
    """The fields that a run cannot change on the way; the others (workers, cadences, ...) may differ at every start."""
    training = ("num_steps", "global_batch_size", "seed", "precision", "ema_decay")
    free_ingest = ("max_processes", "prefetch_slices", "max_corrupt_fraction")
    values = flatten(to_dict(config))
    return {
        name: value
        for name, value in values.items()
        if name.startswith(("model.", "loss.", "optimizer."))
        or name in ("data.weights", "data.seed", *(f"training.{field}" for field in training))
        or (name.startswith("ingest.") and name.removeprefix("ingest.") not in free_ingest)
    }
