"""tmp"""

from collections.abc import Callable

from pipelines.benchmarks.dataset import SegmentationDataset
from pipelines.benchmarks.scenes import open_scenes

BENCHMARKS: dict[str, Callable[[str], SegmentationDataset]] = {"scenes": open_scenes}
