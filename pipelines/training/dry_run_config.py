"""Flags of a dry run."""

import dataclasses
import math

from pipelines.errors import require_at_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class DryRunConfig:
    """What a dry run takes the cluster to be."""

    gpu: str | None = None
    """GPU of a worker: B200, H200, H100, A100-80GB, A100-40GB, L40S, A10G, L4 or T4. None: what this machine has."""
    gpus_per_node: int = 8
    """Number of workers on one machine, which share its network."""
    images_per_second_per_gpu: float | None = None
    """Measured training speed of one worker, in images per second. None: estimated for the paper's model from what was
    measured on one H200, else there are no hours."""
    images_per_second_per_core: float | None = None
    """Measured speed of reading on one CPU core, in images per second. None: as measured here if the data can be read,
    else 443, which was measured with the paper's augmentation."""

    def __post_init__(self) -> None:
        require_at_least(self, "dry_run.", gpus_per_node=1)
        for name in ("images_per_second_per_gpu", "images_per_second_per_core"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"dry_run.{name}={value} is not a speed: give images per second, above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DryRunFlags:
    """Checks a training without its GPUs, in seconds: data, memory of a GPU by item, cores that read, network of a
    machine, hours, bytes of checkpoints. The flags of the experiment are understood as well. Nothing is trained, and
    nothing is written. Exit code 1 if something cannot work."""

    dry_run: DryRunConfig = dataclasses.field(default_factory=DryRunConfig)
