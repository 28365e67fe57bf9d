"""The classes of the benchmarks, each list stored once in `classes/NAME.json` with the source of its names.

A class has the name that its benchmark gives it. If nobody would search for that name, it has other `words`: for VOC
and Context those of GroupViT's protocol ("diningtable" → "table"); for COCO-Stuff the meaning of its endings
("wall-other", "desk-stuff" → "wall", "desk"; "wall-brick" → "brick wall"; "playingfield" → "playing field"). All other
names are unchanged, even odd ones, so that results are comparable with published ones. No two classes share a word.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class LabelClass:
    """A class of a segmentation benchmark."""

    number: int
    """Number of the class in the benchmark's own files."""
    name: str
    words: tuple[str, ...]
    """Words to look for the class by."""
    colour: tuple[int, int, int] | None
    """RGB colour in pictures; None if the benchmark has no colours that distinguish its classes."""


def read_classes(benchmark: Literal["voc", "context", "coco", "cityscapes", "ade20k"]) -> tuple[LabelClass, ...]:
    """Reads all classes in the order of their label indices. The background, if there is one, is first."""
    return tuple(
        LabelClass(
            number=row["number"],
            name=row["name"],
            words=tuple(row.get("words", [row["name"]])),
            colour=tuple(row["colour"]) if "colour" in row else None,
        )
        for row in _rows(benchmark)
    )


def read_imagenet_classes() -> tuple[tuple[str, str], ...]:
    """Reads the 1,000 classes of ImageNet in label order: (folder, name), with CLIP's curated names."""
    return tuple((row["folder"], row["name"]) for row in _rows("imagenet"))


def _rows(name: str) -> list[dict[str, Any]]:
    return json.loads(
        (resources.files("pipelines.benchmarks") / "classes" / f"{name}.json").read_text(encoding="utf-8")
    )["classes"]
