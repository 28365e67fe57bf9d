"""The classes of the benchmarks, written down once: `classes/NAME.json`, each with the source of its names.

A class has the name its benchmark gives it, and, where that name is no word one would look for, other `words`: those of
GroupViT's protocol for VOC and Context ("diningtable" → "table"); for COCO-Stuff what its endings mean ("wall-other",
"desk-stuff" → "wall", "desk"; "wall-brick" → "brick wall"; "playingfield" → "playing field"). All else stays as the
benchmark has it, however odd, so that results compare with published ones. No two classes share a word.
"""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class LabelClass:
    """A class of a segmentation benchmark."""

    number: int
    """What the benchmark calls it in its own files."""
    name: str
    words: tuple[str, ...]
    """What it is looked for by."""
    colour: tuple[int, int, int] | None
    """RGB in pictures; None where the benchmark has no colours that tell its classes apart."""


def read_classes(benchmark: Literal["voc", "context", "coco", "cityscapes", "ade20k"]) -> tuple[LabelClass, ...]:
    """All classes in the order of their label indexes, the background first where there is one."""
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
    """The 1,000 classes of ImageNet in the order of their labels: (folder, name), with CLIP's curated names."""
    return tuple((row["folder"], row["name"]) for row in _rows("imagenet"))


def _rows(name: str) -> list[dict[str, Any]]:
    return json.loads(
        (resources.files("pipelines.benchmarks") / "classes" / f"{name}.json").read_text(encoding="utf-8")
    )["classes"]
