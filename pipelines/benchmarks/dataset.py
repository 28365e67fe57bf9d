"""What an evaluation needs of a benchmark: its classes, and its images with masks, in blocks that workers read.

Each benchmark is a file of this package; `scenes` reads the folders of `groupvit demo-data`, the others read the
official layouts.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groupvit.words import BACKGROUND


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image with its truth."""

    index: int
    """Position in the data set."""
    sample_id: str
    image: NDArray[np.uint8]
    """RGB [H, W, 3]."""
    mask: NDArray[np.uint8]
    """[H, W]: class index, 255 = ignored."""
    caption: str
    """For people: what the picture shows, or its file name."""
    part: str


@dataclass(frozen=True, kw_only=True)
class SegmentationDataset(ABC):
    """What is known of a benchmark without reading an image. Workers get copies of it."""

    uri: str
    """Its folder."""
    benchmark: str
    classes: tuple[str, ...]
    """A name per label; label 0 is `background` where there is one."""
    words: tuple[tuple[str, ...], ...]
    """Per class without the background: the words it is looked for by, synonyms if there are several."""
    colours: tuple[tuple[int, int, int], ...] | None
    """The official colour of each label; None: any will do."""
    parts: tuple[str, ...]
    """Results are told per part."""
    digest: str
    """Hash of what is evaluated: equal digests mean equal data."""
    part_of_scene: tuple[str, ...]
    """The part of every scene, by position."""
    official_counts: tuple[int, ...] = ()
    """Number of images that published numbers are of; several where several lists are in use, none for own data."""

    @property
    def has_background(self) -> bool:
        return self.classes[0] == BACKGROUND

    @abstractmethod
    def blocks(self, indexes: Sequence[int], block_size: int) -> list[Any]:
        """The chosen scenes (rising positions) as blocks of at most `block_size`, each for `read`."""

    @abstractmethod
    def read(self, block: Any) -> Iterator[Scene]:
        """Decodes the scenes of a block. ValueError, with the scene, for a damaged image or an unfit mask."""
