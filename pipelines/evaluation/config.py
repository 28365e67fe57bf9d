"""Arguments of `groupvit evaluate`."""

import dataclasses
from typing import Annotated

import tyro

from groupvit.captions import TemplateSet
from groupvit.config import PrecisionChoice
from pipelines.benchmarks.names import NOT_ONE_OF_SEGMENTATION
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
    words: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Words to look for a class by, in place of the benchmark's: "person=man,woman,child". The class embedding is the
    mean over all of them. Repeat the flag for further classes. The result is then no longer the protocol's."""
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

    explain: bool = False
    """Instead of a full evaluation: measure what each usual mistake (resize, normalisation, prompt, threshold, ...)
    costs in mIoU on a sample of the images, print a table and write it to explanation.json in `out`. One benchmark of
    segmentation, with or without `calibration`."""
    explain_images: int | None = 50
    """Number of images in the sample. None: all. Each is encoded about 15 times."""
    explain_seed: int = 0
    """Seed of the sample, and of the standard errors."""
    explain_found: float | None = None
    """mIoU in percent that someone else got, e.g. 42.8: names the mistakes that come nearest. It is compared with the
    sample's numbers, so it should be of the same images, unless `explain_expected` is given. For scenes: the mean over
    the parts."""
    explain_expected: float | None = None
    """mIoU in percent that would be right on the images of `explain_found`, e.g. 52.3: the difference of the two is
    then compared with the costs on the sample."""

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
        if self.words and self.benchmark in NOT_ONE_OF_SEGMENTATION:
            raise ValueError(
                f"words={self.words} are for the classes of one benchmark of segmentation: give --benchmark"
            )
        self._check_explain()

    def _check_explain(self) -> None:
        require_at_least(self, explain_images=1, explain_seed=0)
        for name in ("explain_found", "explain_expected"):
            value = getattr(self, name)
            if value is not None and not self.explain:
                raise ValueError(f"{name}={value} is for --explain: add it")
            if value is not None and not 0 <= value <= 100:
                raise ValueError(f"{name}={value} is not an mIoU in percent: give a number from 0 to 100, e.g. 42.8")
        if self.explain_expected is not None and self.explain_found is None:
            raise ValueError(
                f"explain_expected={self.explain_expected} is to be compared with a number: give --explain-found"
            )
        if not self.explain:
            return
        if self.benchmark in NOT_ONE_OF_SEGMENTATION:
            kind = "is several benchmarks" if self.benchmark == "all" else "has no masks"
            raise ValueError(f"explain=True with benchmark={self.benchmark}, which {kind}: give one of segmentation")
        if self.no_grouping:
            raise ValueError("explain=True with no_grouping=True: leave one of them out")
        if self.mlflow_run is not None:
            raise ValueError(f"explain=True with mlflow_run={self.mlflow_run}: costs are not logged, leave it out")
