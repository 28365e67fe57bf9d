"""What `groupvit app` can be told. Nothing heavy is imported here, so that help and mistakes are answered at once."""

import dataclasses
import ipaddress
from typing import Literal

from groupvit.config import PrecisionChoice

MEGABYTE = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppConfig:
    """Shows a page on which images are segmented by words, until Ctrl-C.

    Ray is started on this machine for as long, unless RAY_ADDRESS names a cluster.
    """

    checkpoint: str
    """Folder of a checkpoint, or of a run (its newest checkpoint is taken): a local path or s3:// URI."""
    host: str = "127.0.0.1"
    """Address to listen at. Another one than that of this machine alone lets everybody in who can reach it: there is no
    password."""
    port: int = 8000
    """Port to listen at. 0: any free one."""
    num_replicas: int = 1
    """Copies of the model, each segmenting one image at a time."""
    gpus_per_replica: float = 0.0
    """GPUs (or a share of one) of a copy."""
    examples: str | None = None
    """Folder of images to try, or of scenes of `groupvit demo-data` (DIR/validation), which bring their class names
    along: up to 12 are shown. None: visitors bring their own images."""
    protocol: Literal["model", "paper"] = "model"
    """How images are segmented, as for `evaluate`."""
    precision: PrecisionChoice = "auto"
    """What the image tower computes in. `auto`: bfloat16 where the hardware has it natively, else float32."""
    max_upload_megabytes: int = 20
    """Largest image file that is accepted."""
    show_logs: bool = False
    """Show what Ray's own processes have to say."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port={self.port} is no port: give 1 to 65535, or 0 for any free one")
        if not self.host or ":" in self.host or "/" in self.host:
            raise ValueError(f"host={self.host!r} is no IPv4 address or name: give one, like 127.0.0.1")
        if self.num_replicas < 1:
            raise ValueError(f"num_replicas={self.num_replicas} is too small: give at least 1")
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
