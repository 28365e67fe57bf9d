"""All segmentation benchmarks by the names that users give. The opened data set says whether it has a background."""

from collections.abc import Callable

from pipelines.benchmarks.ade20k import open_ade20k
from pipelines.benchmarks.cityscapes import open_cityscapes
from pipelines.benchmarks.coco import open_coco_object, open_coco_stuff
from pipelines.benchmarks.context import open_context59, open_context60
from pipelines.benchmarks.dataset import SegmentationDataset
from pipelines.benchmarks.folder import open_folder
from pipelines.benchmarks.scenes import open_scenes
from pipelines.benchmarks.voc import open_voc20, open_voc21

BENCHMARKS: dict[str, Callable[[str], SegmentationDataset]] = {
    "voc21": open_voc21,
    "voc20": open_voc20,
    "context60": open_context60,
    "context59": open_context59,
    "coco-object": open_coco_object,
    "coco-stuff": open_coco_stuff,
    "cityscapes": open_cityscapes,
    "ade20k": open_ade20k,
    "scenes": open_scenes,
    "folder": open_folder,
}
"""Functions by name that open the benchmark's folder (a local path or s3:// URI). They raise ValueError if the folder
is not that benchmark."""
