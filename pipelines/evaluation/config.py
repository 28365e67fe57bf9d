"""What `groupvit evaluate` is asked for."""

import dataclasses

from groupvit.captions import TemplateSet
from groupvit.config import PrecisionChoice, Protocol
from pipelines.benchmarks.names import BenchmarkName


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is evaluated, on what, and where results go."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its newest checkpoint is taken): a local path or s3:// URI."""
    root: str
    """Folder of the benchmark's data in its official layout (of `scenes`: the folder with scenes.json): a local path or
    s3:// URI."""
    benchmark: BenchmarkName = "scenes"
    """What is evaluated; `all`: each segmentation benchmark whose data lies in `root`. `imagenet` is classification of
    whole images; of the options it has checkpoint, root, out, templates, batch size, workers and MLflow run."""
    out: str = "evaluation"
    """Folder for metrics.json, tables, the confusion matrix, predictions and pictures; with `all`, one folder in it per
    benchmark."""
    protocol: Protocol | None = None
    """`paper`: short side and windows of 448, stride 224, five classes per window, the paper's background threshold of
    the benchmark. `unified`: the same sizes, all classes, one constant background score for all benchmarks. `model`:
    what the checkpoint's experiment says, else the paper's with sizes scaled to the model's image size. None: `model`
    for scenes, else `paper`."""
    pamr: bool = False
    """Refine masks along colour edges (PAMR), as an option of the unified protocol."""
    templates: TemplateSet | None = None
    """Prompt templates: `simple` is "a photo of a {}.", `subset` adds CLIP's seven, `full` is CLIP's eighty. None: as
    the protocol says."""
    background_threshold: float | None = None
    """Replaces the protocol's; the result is then no longer that protocol's. None: chosen on `calibration`, else as the
    protocol says."""
    calibration: str | None = None
    """Scenes folder on which the background threshold is chosen, for each method compared. Never the evaluated data."""
    no_grouping: bool = False
    """Also evaluate the same towers without grouping: image tokens compared with the classes."""
    num_workers: int = 1
    """Processes that score images. The result is the same for any number."""
    cpus_per_worker: int = 1
    """CPUs reserved for, and threads used by, a worker."""
    gpus_per_worker: float = 0.0
    """GPUs (or a share of one) of a worker."""
    batch_size: int | None = None
    """Windows that go through the image tower together on a GPU. None: 32. On CPUs only the windows of one image do, so
    that masks have the same bits for any value."""
    precision: PrecisionChoice = "auto"
    """What the image tower computes in. `bfloat16`: autocast, about twice as fast where the hardware has it, with masks
    that differ a little. `auto`: bfloat16 where the workers' device computes it natively, else float32. The result says
    which; published numbers are float32."""
    max_scenes: int | None = None
    """Scenes used of each part, evenly spaced. None: all."""
    num_pictures: int = 8
    """Scenes drawn of each part, evenly spaced. 0: none."""
    save_predictions: bool = True
    """Whether predictions are written as PNGs of class indexes."""
    mlflow_run: str | None = None
    """Id of an existing MLflow run that gets the metrics, tables and pictures. None: not logged."""
    tracking_uri: str | None = None
    """MLflow server or database of that run. None: MLFLOW_TRACKING_URI."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "cpus_per_worker", "num_pictures", "max_scenes", "batch_size"):
            value, least = getattr(self, name), int(name != "num_pictures")
            if value is not None and value < least:
                raise ValueError(f"{name}={value} is too small: give at least {least}")
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
