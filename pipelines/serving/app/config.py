"""Arguments of `groupvit app`. Nothing heavy is imported here, so that help and error messages appear at once."""

import dataclasses
import ipaddress
from typing import Literal

from groupvit.config import PrecisionChoice
from pipelines.errors import require_at_least

MEGABYTE = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppConfig:
    """Serves a web page that segments images by words, until Ctrl-C.

    Ray runs on this machine during that time, unless RAY_ADDRESS names a cluster.
    """

    checkpoint: str
    """Folder of a checkpoint, or of a run (its newest checkpoint is used): a local path or s3:// URI."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no password: with any address but a loopback one, everybody who can reach this
    machine can use the page."""
    port: int = 8000
    """Port to listen on. 0: any free port."""
    num_replicas: int = 1
    """Number of copies of the model. Each segments one image at a time."""
    gpus_per_replica: float = 0.0
    """Number of GPUs of a copy, or a fraction of one."""
    examples: str | None = None
    """Folder of images to try, or of scenes of `groupvit demo-data` (DIR/validation), which include class names. Up to
    12 images are shown. None: visitors bring their own images."""
    protocol: Literal["model", "paper"] = "model"
    """Protocol of the segmentation, as for `evaluate`."""
    precision: PrecisionChoice = "float32"
    """Precision of the image tower. float32 gives the same labels everywhere. `auto`: bfloat16 if the hardware computes
    it natively, else float32; faster, and edges of masks move."""
    max_upload_megabytes: int = 20
    """Size of the largest accepted image file, in MB."""
    show_logs: bool = False
    """Whether to show the logs of Ray's processes."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port={self.port} is not a port: give 1 to 65535, or 0 for any free one")
        if not self.host or ":" in self.host or "/" in self.host:
            raise ValueError(f"host={self.host!r} is not an IPv4 address or name: give one, like 127.0.0.1")
        require_at_least(self, num_replicas=1)
        if self.gpus_per_replica < 0:
            raise ValueError(f"gpus_per_replica={self.gpus_per_replica} is negative: give 0 or more")
        if not 1 <= self.max_upload_megabytes <= 200:
            raise ValueError(f"max_upload_megabytes={self.max_upload_megabytes}: give 1 to 200")

    @property
    def is_private(self) -> bool:
        """Whether only this machine can reach the page."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
