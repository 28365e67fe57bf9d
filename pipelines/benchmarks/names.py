"""What users call the benchmarks. Apart from what opens them: a config needs no PyTorch."""

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
    "all",
    "imagenet",
]
Protocol = Literal["model", "paper", "unified"]
