"""Configuration of a pretraining run: the model, its data, the training, and where it is recorded.

An experiment is a function that returns an `ExperimentConfig` (pipelines/experiments/catalogue.py). Flags on the
command line override single fields. Configs are frozen. `validate` checks the rules across fields once, on the driver,
before Ray starts.
"""

import dataclasses
from typing import Literal

from groupvit.config import (
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionChoice,
    SegmentationConfig,
)
from pipelines.benchmarks.names import NOT_ONE_OF_SEGMENTATION
from pipelines.errors import require_at_least
from pipelines.experiments.amendments import check_amendments
from pipelines.experiments.caption_mix import parse_caption_mix
from pipelines.experiments.scoring import EvaluationConfig
from pipelines.experiments.tracking import TrackingConfig
from pipelines.experiments.worker_range import worker_range
from pipelines.local.folder_names import check_folder_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The samples, their proportions and their order."""

    sources: tuple[str, ...] = ()
    """Dataset folders (each holds dataset.json): local paths or s3:// URIs. --data [NAME=]URI[:WEIGHT], once per
    source, is short for this field, `weights` and `names`. An existing folder like year=2020/train is read as a URI
    without a NAME."""
    weights: tuple[float, ...] | None = None
    """Weight of each source in the mixture, in the order of `sources`: positive numbers of any scale. None: by size, as
    in the paper."""
    names: tuple[str, ...] | None = None
    """Names of the sources in records. None: the last part of each URI."""
    caption_mix: tuple[str, ...] | None = None
    """Weights of origins, e.g. original:0.5 llava:0.5: for each sample of an epoch, the origin of its caption is drawn
    among those that it has. Names are `original` and those of `curate --as`. None: all captions take turns."""
    seed: int = 0
    """Seed of the sample order and of every random draw in augmentation and prompts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How Ray Data tasks decode, augment and tokenise samples to make slices."""

    slice_size: int | Literal["auto"] = 256
    """Number of samples in a slice, the unit that Ray Data ships and the micro-batch of a worker. It determines the
    memory of a worker, but not the gradients: those are always of the global batch. `auto`: the largest that the
    workers' memory allows by prediction, up to 1,024. The first start chooses, and later ones keep it."""
    window_size: int = 1024
    """Number of samples in a window of the sample order. One process reads, decodes and permutes a window. Must be a
    multiple of `slice_size`."""
    augmentation: Literal["deit", "crop_flip"] = "deit"
    """`deit`: RandAugment and random erasing (the paper). `crop_flip`: random resized crop and flip only."""
    augment_on: Literal["cpu", "device"] = "cpu"
    """Where images are augmented after the crop. `device`: where the model trains, in batches; the reading processes
    then only decode and crop. Draws and operations are the same; only the noise in erased rectangles is another."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of the random crop, as a share of the image."""
    color_jitter: float = 0.0
    """Largest change of brightness, contrast and saturation, with `crop_flip`. `deit` uses RandAugment instead."""
    resize: Literal["auto", "torch", "pillow"] = "auto"
    """Code that resizes crops. `torch`: SIMD, three times as fast, from JPEGs decoded at a smaller size if the crop is
    still large enough. `pillow`: timm's pixels. `auto`: `torch`, but `pillow` for runs older than this choice."""
    prompt_templates: Literal["clip", "plain"] = "clip"
    """`clip`: CLIP's 80 templates (the paper). `plain`: only "a photo of a {}.". Equal nouns then give equal prompts,
    which are encoded once, and a small text tower need not learn what the templates have in common."""
    prompt_padding: Literal["caption", "nouns"] = "caption"
    """What to add if a caption has fewer nouns than there are prompts: the caption (the paper), or its nouns again,
    which add nothing that is not in the image."""
    max_processes: int | None = None
    """Largest number of reading processes, one CPU each. Fewer run while training is slower than reading. None: the
    number of CPUs that training and evaluation leave free when the workers start."""
    prefetch_slices: int | None = None
    """Number of slices held ready for each worker. None: those of a step, within an eighth of Ray's object store."""
    max_corrupt_fraction: float = 0.01
    """Share of corrupt images above which the run stops. Each is counted, and replaced by another sample of its
    window."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, workers, precision and checkpoints of the run."""

    num_steps: int = 209_910
    """Optimiser steps of the whole run."""
    global_batch_size: int = 4096
    """Number of samples per optimiser step over all workers. Each one is a negative for every other."""
    seed: int = 0
    """Seed of the initial weights and of the model's noise (Gumbel, stochastic depth) at every step."""
    num_workers: int | str = 1
    """Number of training processes, or a range like 2:8: as many as there is room for, more when machines come, fewer
    when they go. It changes neither the batches nor the result."""
    resize_every_n_seconds: float = 60.0
    """With a range of `num_workers`: number of seconds between two looks whether there is room for more workers."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto`: GPUs if the cluster has any. One worker uses one GPU (nccl) or `cpus_per_worker` CPUs (gloo)."""
    cpus_per_worker: int = 1
    """Number of CPUs reserved for a worker, and of threads that it uses."""
    gpus_per_worker: float = 1.0
    """Number of GPUs reserved for a worker, if workers use GPUs. With one worker, it may be a fraction, like 0.25:
    several trials of a sweep then share a GPU and its memory."""
    precision: PrecisionChoice = "auto"
    """`bfloat16`: autocast in the towers; parameters, projectors' statistics and losses stay float32. `tf32`: float32,
    multiplied with 10 bits of mantissa, on NVIDIA GPUs since Ampere. `auto`: bfloat16 if every worker's device computes
    it natively, else float32. The first start chooses, and later ones keep it."""
    reduce_precision: Literal["auto", "exact", "float32", "bfloat16"] = "auto"
    """How gradients are summed over slices and workers. `exact`: as 64-bit integers, with the same bits for any number
    of workers. `float32`: half the bytes, but rounding depends on the workers. `bfloat16`: half of these again, for
    slow networks. `auto`: exact, but `float32` for runs older than this choice."""
    max_grad_norm_ratio: float | None = None
    """A step is skipped if the norm of its gradient is larger than this times the median of the last 128 used ones.
    None: only steps whose loss or gradient is not finite are skipped."""
    max_skipped_steps: int = 10
    """Largest number of skipped steps in a row. If there are more, the run stops."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether to compile the towers with torch.compile. It takes minutes at the first start, and makes steps on GPUs
    faster. `auto`: on GPUs."""
    deterministic: bool = False
    """Whether a GPU gives the same bits each time, also after a resume, on GPUs of the same kind. Steps are slower. The
    model's noise is then drawn in another way, which gives the same numbers on every device."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which is saved as the model. None: off (the paper)."""
    runs_folder: str = "runs"
    """Folder of the runs, with one folder per run: a local path or s3:// URI that every worker can reach."""
    run_name: str | None = None
    """Name of the run. The same name resumes the run from its last checkpoint. None: the experiment's name."""
    checkpoint_every_n_steps: int = 1000
    keep_checkpoints: int | None = 3
    """Number of newest checkpoints to keep. None: all."""
    log_every_n_steps: int = 10
    """Number of steps between two progress lines and between two records of metrics."""
    max_failures: int = 3
    """Largest number of restarts of the workers from the last checkpoint after one died."""
    hang_timeout: float | None = 1800.0
    """Number of seconds after which a step counts as hanging: every worker says where it is and ends, and the workers
    restart from the last checkpoint. None: never."""
    show_ray_logs: bool = False
    """Whether to show the logs of Ray's processes, too, to find out why something does not start."""
    record_samples: str | None = None
    """Folder for the ids of the samples that each worker consumes at each step (jsonl), to check a run's sample order.
    None: off."""

    @property
    def min_workers(self) -> int:
        return worker_range(self.num_workers)[0]

    @property
    def max_workers(self) -> int:
        return worker_range(self.num_workers)[1]


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
    """How the model segments. Stored in its checkpoints; used by `evaluate` and `segment`."""
    amendments: tuple[str, ...] = ()
    """What changes from a step on, e.g. "from 90000: optimizer.learning_rate=1e-4", "from 120000: data.weights=0.7,0.3"
    or "skip 118400:118500". --amend TEXT, once per amendment, is short for this field. The run records them with who
    and when, and every later start follows them. One that begins before the newest checkpoint is refused."""

    @property
    def run_name(self) -> str:
        return self.training.run_name or self.name

    @property
    def slice_size(self) -> int:
        """Number of samples in a slice, once `auto` is settled."""
        assert self.ingest.slice_size != "auto", "the start of the run settles ingest.slice_size"
        return self.ingest.slice_size

    @property
    def slices_per_step(self) -> int:
        """Number of slices per optimiser step over all workers: G of the sample order."""
        return self.training.global_batch_size // self.slice_size

    @property
    def micro_batches_per_step(self) -> int:
        """Largest number of slices that one worker consumes per optimiser step. Some may consume one less."""
        return -(-self.slices_per_step // self.training.min_workers)


def validate(config: ExperimentConfig) -> None:
    """Raises ValueError for the first rule that `config` breaks: one line with the field, its value, and what to give
    instead."""
    data, ingest, training, evaluation = config.data, config.ingest, config.training, config.evaluation
    require_at_least(training, "training.", num_steps=1, global_batch_size=1, cpus_per_worker=1, max_failures=0)
    require_at_least(training, "training.", checkpoint_every_n_steps=1, keep_checkpoints=1, log_every_n_steps=1)
    require_at_least(training, "training.", resize_every_n_seconds=1, hang_timeout=1, max_skipped_steps=0)
    require_at_least(evaluation, "evaluation.", every_n_steps=1)
    require_at_least(ingest, "ingest.", window_size=1, prefetch_slices=0, max_processes=1)

    _check_slices(ingest, training)
    gpus = training.gpus_per_worker
    if gpus <= 0 or (gpus > 1 and gpus % 1):
        raise ValueError(
            f"training.gpus_per_worker={gpus} cannot be reserved: give a share between 0 and 1, or a whole number; "
            "--training.device cpu uses none"
        )
    if gpus < 1 < training.max_workers and training.device != "cpu":
        raise ValueError(
            f"training.gpus_per_worker={gpus} with training.num_workers={training.num_workers} would put several "
            "workers on one GPU, and NCCL refuses that: give one worker, or whole GPUs"
        )
    if not 0 <= ingest.max_corrupt_fraction <= 1:
        raise ValueError(f"ingest.max_corrupt_fraction={ingest.max_corrupt_fraction} is not a share: give 0 to 1")
    if not 0 < ingest.crop_scale[0] <= ingest.crop_scale[1] <= 1:
        raise ValueError(f"ingest.crop_scale={ingest.crop_scale} is not a range within (0, 1]: give e.g. 0.08 1.0")

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

    parse_caption_mix(data.caption_mix)
    if training.max_grad_norm_ratio is not None and not training.max_grad_norm_ratio > 1:
        raise ValueError(
            f"training.max_grad_norm_ratio={training.max_grad_norm_ratio} would skip ordinary steps: give more than 1, "
            "e.g. 10, or None"
        )
    if training.ema_decay is not None and not 0 < training.ema_decay < 1:
        raise ValueError(f"training.ema_decay={training.ema_decay} is outside (0, 1): give e.g. 0.999, or None")
    if config.optimizer.warmup_steps >= training.num_steps and config.optimizer.warmup_steps > 0:
        raise ValueError(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} leaves nothing of training.num_steps="
            f"{training.num_steps}: give less, e.g. {training.num_steps // 10}"
        )
    check_folder_name("training.run_name", config.run_name, reserved=("mlflow.db", "mlflow-artifacts"))
    if evaluation.every_n_steps is not None and evaluation.benchmark in NOT_ONE_OF_SEGMENTATION:
        raise ValueError(
            f"evaluation.benchmark={evaluation.benchmark} is not for every few steps: give one of segmentation"
        )
    if evaluation.every_n_steps is not None and not evaluation.root:
        raise ValueError(
            f"evaluation.every_n_steps={evaluation.every_n_steps} needs data: give evaluation.root, the folder of "
            f"{evaluation.benchmark}"
        )
    check_amendments(config.amendments, num_steps=training.num_steps, num_sources=len(data.sources))
    if config.tracking.uri == "":
        raise ValueError("tracking.uri is empty: give a URI, `default`, or None for off")


def _check_slices(ingest: IngestConfig, training: TrainingConfig) -> None:
    """Raises ValueError unless a batch and a window consist of whole slices, and every worker gets one."""
    size, batch, num_workers = ingest.slice_size, training.global_batch_size, training.max_workers
    if size == "auto":
        if batch < num_workers:  # slices of one sample may come out
            raise ValueError(
                f"training.num_workers={num_workers} is more than training.global_batch_size={batch}: give at most "
                f"{batch}"
            )
        return
    require_at_least(ingest, "ingest.", slice_size=1)
    if batch % size:
        lower = batch // size * size
        raise ValueError(
            f"training.global_batch_size={batch} is not a multiple of ingest.slice_size={size}: give "
            + (f"{lower} or {lower + size}" if lower else f"{size}, or smaller slices")
        )
    if batch // size < num_workers:
        raise ValueError(
            f"training.num_workers={num_workers} is more than the {batch // size} slices of a batch "
            f"(training.global_batch_size={batch} / ingest.slice_size={size}): give at most {batch // size}, or "
            "smaller slices"
        )
    if ingest.window_size % size:
        raise ValueError(
            f"ingest.window_size={ingest.window_size} is not a multiple of ingest.slice_size={size}: give "
            f"{-(-ingest.window_size // size) * size}"
        )
