"""Names of the benchmarks for users. Separate from the code that opens them, so that a config does not need PyTorch."""

from typing import Literal

BenchmarkName = Literal[
    "scenes",
    "voc21",
    "voc20",
    "context60",
    "context59",
    "coco-object",
    "coco-stuff",
    "cityscapes",
    "ade20k",
    "folder",
    "all",
    "imagenet",
    "retrieval",
]
NOT_ONE_OF_SEGMENTATION = ("all", "imagenet", "retrieval")
Protocol = Literal["model", "paper", "unified"]
