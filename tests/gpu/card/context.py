"""What every section of the checks gets."""

import dataclasses
from pathlib import Path

from tests.gpu.card.device import Device
from tests.gpu.card.report import Report
from tests.gpu.card.sizes import Sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """A section adds rows to the report."""

    device: Device
    sizes: Sizes
    report: Report
    out: Path
    """Folder of the results; sections may keep files in it."""
