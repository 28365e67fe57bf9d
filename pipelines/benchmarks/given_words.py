"""Replaces the words that a benchmark's classes are looked for by: `groupvit evaluate --words "person=man,woman"`."""

import dataclasses
from collections.abc import Mapping, Sequence

from groupvit.words import BACKGROUND, parse_words
from pipelines.benchmarks.class_file import check_class_words
from pipelines.benchmarks.dataset import SegmentationDataset


def with_words(dataset: SegmentationDataset, given: Sequence[str]) -> SegmentationDataset:
    """Returns the data set with other words for some classes.

    Args:
        dataset: Any data set.
        given: Texts like "person=man,woman", one per class.

    Raises:
        ValueError: A class is unknown or given twice, or a word is missing, invalid or also that of another class.
    """
    words = dict(zip(_names(dataset), dataset.words, strict=True))
    changed = _parsed(given, words)
    taken: dict[str, str] = {}
    for name, of_class in (words | changed).items():
        for word in of_class:
            other = taken.setdefault(word.casefold(), name)
            if other != name and (name in changed or other in changed):
                raise ValueError(f"words: {word!r} is for {other} and for {name}: give each word to one class")
    return dataclasses.replace(dataset, words=tuple((words | changed).values()))


def changed_words(dataset: SegmentationDataset, given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns the words of the classes that `given` names, of a data set with these words."""
    names = {text.partition("=")[0].strip() for text in given}
    return {name: words for name, words in zip(_names(dataset), dataset.words, strict=True) if name in names}


def _names(dataset: SegmentationDataset) -> list[str]:
    return [name for name in dataset.classes if name != BACKGROUND]


def _parsed(given: Sequence[str], known: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    changed: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, _, rest = text.partition("=")
        name, words = name.strip(), tuple(parse_words(rest))
        if not words:
            raise ValueError(f'words={text!r} names no words: give a class and its words, like "person=man,woman"')
        if name not in known:
            raise ValueError(f"words={text!r}: {name!r} is not a class, which are {', '.join(known)}")
        if name in changed:
            raise ValueError(f"words={text!r}: {name} is given twice: give all its words at once")
        if len({word.casefold() for word in words}) < len(words):
            raise ValueError(f"words={text!r} has a word twice: give each word once")
        check_class_words(words, text)
        changed[name] = words
    return changed
