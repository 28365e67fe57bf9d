"""Published results, for comparison with ours, and the thresholds that they were measured with."""

from typing import Literal

PAPER_THRESHOLDS = {"voc21": 0.95, "context60": 0.35, "coco-object": 0.95}
"""Background threshold of each benchmark in the paper (from released configurations; its text says .9 and .5)."""

PUBLISHED: dict[tuple[Literal["paper", "unified"], str], tuple[tuple[str, str], ...]] = {
    ("paper", "voc21"): (("GroupViT, GCC + YFCC", "52.3"), ("GroupViT, GCC + RedCaps", "50.8"), ("its oracle", "73.7")),
    ("paper", "context60"): (
        ("GroupViT, GCC + YFCC", "22.4"),
        ("GroupViT, GCC + RedCaps", "23.7"),
        ("its oracle", "54.6"),
    ),
    ("paper", "coco-object"): (
        ("GroupViT, GCC + YFCC", "24.3"),
        ("GroupViT, GCC + RedCaps", "27.5"),
        ("its oracle", "54.0"),
    ),
    ("paper", "imagenet"): (("GroupViT, top-1", "42.9"),),
    ("unified", "voc21"): (("GroupViT", "50.4-52.3"), ("TCL + PAMR", "55.0")),
    ("unified", "context60"): (("GroupViT", "18.7"), ("TCL + PAMR", "30.4")),
    ("unified", "coco-object"): (("GroupViT", "27.5"), ("TCL + PAMR", "31.6")),
    ("unified", "voc20"): (("GroupViT", "79.7"), ("TCL + PAMR", "83.2")),
    ("unified", "context59"): (("GroupViT", "23.4"), ("TCL + PAMR", "33.9")),
    ("unified", "coco-stuff"): (("GroupViT", "15.3"), ("TCL + PAMR", "22.4")),
    ("unified", "cityscapes"): (("GroupViT", "11.1-18.5"), ("TCL + PAMR", "24.0")),
    ("unified", "ade20k"): (("GroupViT", "9.2-10.4"), ("TCL + PAMR", "17.1")),
}
"""(protocol, benchmark) → (model, mIoU in percent) as published. `paper`: the GroupViT paper (tables 5 and C.1 to C.4).
`unified`: TCL (CVPR 2023) and later papers; a range if they disagree."""
