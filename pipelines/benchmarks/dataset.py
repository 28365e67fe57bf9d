"""What an evaluation needs from a benchmark: its classes, and its images with masks, in blocks for workers to read.

Each benchmark is a file of this package. `scenes` reads the folders of `groupvit demo-data`; the others read the
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
    """One image with its ground truth."""

    index: int
    """Position in the data set."""
    sample_id: str
    image: NDArray[np.uint8]
    """RGB [H, W, 3]."""
    mask: NDArray[np.uint8]
    """[H, W]: class index, 255 = ignored."""
    caption: str
    """A caption for display: what the image shows, or its file name."""
    part: str


@dataclass(frozen=True, kw_only=True)
class SegmentationDataset(ABC):
    """What is known of a benchmark without reading an image. Workers get copies of it."""

    uri: str
    """Folder of the data set."""
    benchmark: str
    classes: tuple[str, ...]
    """Name of each label. Label 0 is `background` if there is one."""
    words: tuple[tuple[str, ...], ...]
    """For each class except the background: the words to look for it by, several if there are synonyms."""
    colours: tuple[tuple[int, int, int], ...] | None
    """Official colour of each label. None: any colours may be used."""
    parts: tuple[str, ...]
    """Results are reported per part."""
    digest: str
    """Hash of the data to evaluate. Equal digests mean equal data."""
    part_of_scene: tuple[str, ...]
    """Part of each scene, by position."""
    official_counts: tuple[int, ...] = ()
    """Number of images in published results. Several if several lists are in use, none for own data."""

    @property
    def has_background(self) -> bool:
        return self.classes[0] == BACKGROUND

    @abstractmethod
    def blocks(self, indexes: Sequence[int], block_size: int) -> list[Any]:
        """Splits the chosen scenes (ascending positions) into blocks of at most `block_size`, each for `read`."""

    @abstractmethod
    def read(self, block: Any) -> Iterator[Scene]:
        """Decodes the scenes of a block. Raises ValueError, with the scene, for an invalid image or mask."""
