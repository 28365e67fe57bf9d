"""Arguments of `groupvit evaluate`."""

import dataclasses

from groupvit.captions import TemplateSet
from groupvit.config import PrecisionChoice
from pipelines.errors import require_at_least
from pipelines.experiments.scoring import ScoringConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ScoringConfig):
    """Evaluates a checkpoint on a benchmark."""

    checkpoint: str
    """Folder of a checkpoint, or of a run (its newest checkpoint is used): a local path or s3:// URI."""
    out: str = "evaluation"
    """Folder for metrics.json, tables, the confusion matrix, predictions and pictures. `all` makes one folder in it per
    benchmark."""
    pamr: bool = False
    """Whether to refine masks along colour edges (PAMR), an option of the unified protocol."""
    templates: TemplateSet | None = None
    """Prompt templates: `simple` is "a photo of a {}.", `subset` adds CLIP's seven (imagenet: only these), `full` is
    CLIP's eighty. None: the protocol's (imagenet: `subset`)."""
    background_threshold: float | None = None
    """Replaces the protocol's background threshold; the result is then no longer that protocol's. None: chosen on
    `calibration`, else the protocol's."""
    no_grouping: bool = False
    """Whether to evaluate the same towers also without grouping: image tokens are compared with the classes."""
    batch_size: int | None = None
    """Number of windows in one batch of the image tower on a GPU. None: 32 (imagenet, retrieval: 64 images). On CPUs a
    batch holds only the windows of one image, so masks have the same bits for any value."""
    precision: PrecisionChoice = "auto"
    """Precision of the image tower. `bfloat16`: autocast, about twice as fast on hardware that supports it; masks
    differ slightly. `auto`: bfloat16 if the workers' device computes it natively, else float32. The result names the
    precision. Published numbers are float32."""
    save_predictions: bool = True
    """Whether to write predictions as PNGs of class indexes."""
    mlflow_run: str | None = None
    """Id of an existing MLflow run that receives the metrics, tables and pictures. None: not logged."""
    tracking_uri: str | None = None
    """MLflow server or database of that run. None: MLFLOW_TRACKING_URI."""

    def __post_init__(self) -> None:
        require_at_least(self, num_workers=1, cpus_per_worker=1, gpus_per_worker=0)
        require_at_least(self, max_scenes=1, num_pictures=0, batch_size=1)
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
