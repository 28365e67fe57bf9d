"""What all formats have in common: they are told of one segmented image after the other."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from groupvit.segmenter import Segmented
from groupvit.visualize import label_palette
from pipelines import storage
from pipelines.serving.inputs import Picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A segmented image."""

    picture: Picture
    image: NDArray[np.uint8]
    """RGB [H, W, 3], upright."""
    found: Segmented

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]

    def masks(self) -> Iterator[tuple[int, str, NDArray[np.bool_]]]:
        """Yields number, word and mask bool [H, W] of each word that has pixels. Words count from 1."""
        first = int(self.found.has_background)
        for label, word in enumerate(self.found.names[first:], start=first):
            mask = self.found.labels == label
            if mask.any():
                yield label - first + 1, word, mask


class Output(ABC):
    """Files of one format in the folder `out`, local or s3://."""

    keeps_endings: ClassVar[bool]
    """Whether its names of images have their endings. Else, a.jpg and a.png would be the same."""

    def __init__(self, out: str, words: Sequence[str], *, background: bool) -> None:
        """`background`: whether pixels can be background."""
        self.out, self.words = out, tuple(words)
        colours = label_palette(len(words) + background, background)
        self.colours: list[list[int]] = colours[int(background) :][: len(words)].tolist()
        """RGB colour of each word."""

    @staticmethod
    @abstractmethod
    def files(pictures: Sequence[Picture]) -> Iterator[str]:
        """Yields the paths in `out` of the files for these images."""

    @abstractmethod
    def add(self, result: Result) -> None:
        """Takes an image, and may write its files."""

    @abstractmethod
    def finish(self, about: dict[str, Any]) -> None:
        """Writes what is about all images that were added. `about`: the settings."""

    def write(self, name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(self.out, name), content)
