"""Reads classes.txt, the list of classes of a folder of your own: a line per class, in the order of its labels.

    background
    dog: dog, puppy
    grass

A line is a name, or a name, a colon and the words to look for it by, separated by commas. Empty lines are skipped. If
the first class is `background`, it is what belongs to no other class.
"""

from collections.abc import Sequence

from groupvit.words import BACKGROUND, MAX_WORDS, parse_words
from pipelines import storage
from pipelines.benchmarks.class_lists import LabelClass

MAX_BYTES = 2**20
MAX_CHARACTERS = 200
"""Largest length of a name or a word."""


def read_class_file(uri: str) -> tuple[LabelClass, ...]:
    """Reads the classes. Raises ValueError, with the line, for an invalid file; FileNotFoundError without one."""
    try:
        lines = storage.read_bytes(uri, MAX_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{uri} is not UTF-8 text ({error}): save it as UTF-8") from None
    classes: list[LabelClass] = []
    taken: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            classes.append(_parsed(line, len(classes)))
            for text in {classes[-1].name.casefold(), *(word.casefold() for word in classes[-1].words)}:
                if taken.setdefault(text, number) != number:
                    raise ValueError(f"{text!r} is in line {taken[text]}, too: give each name and word once")
        except ValueError as error:
            raise ValueError(f"{uri}, line {number}: {error}") from None
    if not [entry for entry in classes if entry.words]:
        raise ValueError(f"{uri} has no class to look for: give a name per line, like dog")
    if len(classes) > MAX_WORDS + 1:
        raise ValueError(f"{uri} has {len(classes):,} classes: give at most {MAX_WORDS + 1}")
    return tuple(classes)


def _parsed(line: str, index: int) -> LabelClass:
    name, colon, rest = line.partition(":")
    name = " ".join(name.split())
    if not name or not name.isprintable() or len(name) > MAX_CHARACTERS:
        raise ValueError(f"{line[:80]!r} has no name of a class: give name, or name: word, word")
    words = tuple(parse_words(rest))
    if name.casefold() == BACKGROUND:
        if index or colon:
            raise ValueError(f"{line[:80]!r}: {BACKGROUND} must be the first class, and has no words")
        return LabelClass(number=0, name=BACKGROUND, words=(), colour=None)
    if colon and not words:
        raise ValueError(f"{line[:80]!r} has no word after the colon: leave out the colon, or give words")
    check_class_words(words, line)
    return LabelClass(number=index, name=name, words=words or (name,), colour=None)


def check_class_words(words: Sequence[str], text: str) -> None:
    """Raises ValueError, with the text that they are from, if one of a class's words is `background` or too long."""
    if BACKGROUND in {word.casefold() for word in words}:
        raise ValueError(f"{text[:80]!r} has the word {BACKGROUND}, which is what suits no other word: leave it out")
    if long := next((word for word in words if len(word) > MAX_CHARACTERS), None):
        raise ValueError(f"the word {long[:40]!r}... has {len(long):,} characters: give at most {MAX_CHARACTERS}")
