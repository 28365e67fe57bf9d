"""Arguments of `groupvit evaluate`."""

import dataclasses

from groupvit.captions import TemplateSet
from groupvit.config import PrecisionChoice, Protocol
from pipelines.benchmarks.names import BenchmarkName


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluates a checkpoint on a benchmark."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its newest checkpoint is used): a local path or s3:// URI."""
    root: str
    """Folder of the benchmark's data in its official layout (for `scenes`: the folder with scenes.json): a local path
    or s3:// URI."""
    benchmark: BenchmarkName = "scenes"
    """Benchmark to evaluate. `all`: every segmentation benchmark with data in `root`. `imagenet`: classification of
    whole images, which uses only checkpoint, root, out, templates, batch size, precision, workers and MLflow run."""
    out: str = "evaluation"
    """Folder for metrics.json, tables, the confusion matrix, predictions and pictures. `all` makes one folder in it per
    benchmark."""
    protocol: Protocol | None = None
    """`paper`: short side and windows of 448, stride 224, five classes per window, the paper's background threshold for
    the benchmark. `unified`: the same sizes, all classes, one constant background score for all benchmarks. `model`:
    as in the checkpoint's experiment, else the paper's with sizes scaled to the model's image size. None: `model` for
    scenes, else `paper`."""
    pamr: bool = False
    """Whether to refine masks along colour edges (PAMR), an option of the unified protocol."""
    templates: TemplateSet | None = None
    """Prompt templates: `simple` is "a photo of a {}.", `subset` adds CLIP's seven, `full` is CLIP's eighty. None: the
    protocol's."""
    background_threshold: float | None = None
    """Replaces the protocol's background threshold; the result is then no longer that protocol's. None: chosen on
    `calibration`, else the protocol's."""
    calibration: str | None = None
    """Folder of scenes on which the background threshold of each compared method is chosen. It must not be the
    evaluated data."""
    no_grouping: bool = False
    """Whether to evaluate the same towers also without grouping: image tokens are compared with the classes."""
    num_workers: int = 1
    """Number of processes that score images. The result is the same for any number."""
    cpus_per_worker: int = 1
    """Number of CPUs reserved for a worker, and of threads that it uses."""
    gpus_per_worker: float = 0.0
    """Number of GPUs of a worker, or a fraction of one."""
    batch_size: int | None = None
    """Number of windows in one batch of the image tower on a GPU. None: 32. On CPUs a batch holds only the windows of
    one image, so masks have the same bits for any value."""
    precision: PrecisionChoice = "auto"
    """Precision of the image tower. `bfloat16`: autocast, about twice as fast on hardware that supports it; masks
    differ slightly. `auto`: bfloat16 if the workers' device computes it natively, else float32. The result names the
    precision. Published numbers are float32."""
    max_scenes: int | None = None
    """Number of scenes used from each part, evenly spaced. None: all."""
    num_pictures: int = 8
    """Number of scenes drawn from each part, evenly spaced. 0: none."""
    save_predictions: bool = True
    """Whether to write predictions as PNGs of class indexes."""
    mlflow_run: str | None = None
    """Id of an existing MLflow run that receives the metrics, tables and pictures. None: not logged."""
    tracking_uri: str | None = None
    """MLflow server or database of that run. None: MLFLOW_TRACKING_URI."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "cpus_per_worker", "num_pictures", "max_scenes", "batch_size"):
            value, least = getattr(self, name), int(name != "num_pictures")
            if value is not None and value < least:
                raise ValueError(f"{name}={value} is too small: give at least {least}")
        if not self.gpus_per_worker >= 0:
            raise ValueError(f"gpus_per_worker={self.gpus_per_worker} is too small: give 0 or more")
        if self.background_threshold is not None and self.calibration is not None:
            raise ValueError(
                f"background_threshold={self.background_threshold} is given and calibration={self.calibration} "
                "would choose it: give one of them"
            )
        if self.calibration is not None and self.benchmark != "scenes":
            raise ValueError(
                f"calibration={self.calibration} is for scenes: benchmark={self.benchmark} has a threshold by protocol"
            )
        if self.calibration is not None and self.calibration == self.root:
            raise ValueError(f"calibration={self.calibration} is the data to be evaluated: give other scenes")
        if self.pamr and self.protocol != "unified":
            raise ValueError("pamr=True belongs to the unified protocol: add --protocol unified")
