"""Configuration of the scoring of checkpoints: beside training, and in `groupvit evaluate`."""

import dataclasses

from groupvit.config import Protocol
from pipelines.benchmarks.names import BenchmarkName


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How to score a checkpoint: of an evaluation beside training, and of `groupvit evaluate`."""

    root: str
    """Folder of the benchmark's data in its official layout (for `scenes`: the folder with scenes.json; for `folder`:
    images, classes.txt and masks of your own; for `retrieval`: a data set): a local path or s3:// URI that every node
    can read."""
    benchmark: BenchmarkName = "scenes"
    """Benchmark to evaluate. `folder`: pictures of your own. `all`: every segmentation benchmark with data in `root`.
    `imagenet`: classification of whole images. `retrieval`: captions of images, and images of captions, of the data set
    `root`. These two use only checkpoint, root, out, templates (not retrieval), batch size, precision, workers and
    MLflow run. Only `groupvit evaluate` takes these three."""
    protocol: Protocol | None = None
    """`paper`: short side and windows of 448, stride 224, five classes per window, the paper's background threshold for
    the benchmark. `unified`: the same sizes, all classes, one constant background score for all benchmarks. `model`:
    as in the checkpoint's experiment, else the paper's with sizes scaled to the model's image size. None: `model` for
    scenes and folder, else `paper`."""
    calibration: str | None = None
    """Folder of scenes on which the background threshold of each compared method is chosen, for every checkpoint again.
    It must not be the evaluated data."""
    max_scenes: int | None = None
    """Number of scenes used from each part, evenly spaced. None: all."""
    num_pictures: int = 8
    """Number of scenes drawn from each part, evenly spaced. 0: none."""
    num_workers: int = 1
    """Number of processes that score images. The result is the same for any number."""
    cpus_per_worker: int = 1
    """Number of CPUs reserved for a worker, and of threads that it uses."""
    gpus_per_worker: float = 0.0
    """Number of GPUs of a worker, or a fraction of one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(ScoringConfig):
    """Evaluation while the run trains, on separate workers. The training does not wait for it."""

    every_n_steps: int | None = None
    """Number of steps between two evaluated checkpoints; the last one is evaluated, too. `--evaluate-every-n-steps` is
    short for this flag. None: off."""
    root: str = ""
    num_pictures: int = 4
    registered_model: str | None = "default"
    """Name under which the best checkpoint is registered in MLflow at the end of the run. `default`: the experiment's
    name. None: not registered."""
