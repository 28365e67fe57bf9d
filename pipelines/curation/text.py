"""Captions: cleaning, and what tells them from codes and from texts in other alphabets."""

import re
import unicodedata

from groupvit.captions import name_person
from groupvit.tokenizer import mend

_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,300}>")  # <b>, <a href=...>


def clean_caption(text: str) -> str:
    """Mended unicode, no HTML escapes or tags, single spaces; <PERSON>, which stands for a removed name, is a person.

    Case stays. Cleaning a clean caption changes nothing but what only now looks like markup.
    """
    return " ".join(_TAG.sub(" ", name_person(mend(text))).split())


def letter_share(text: str) -> float:
    """Share of letters, with the marks that belong to them, among the characters that are not white space."""
    if text.isascii():
        characters = text.replace(" ", "")
        return sum(map(str.isalpha, characters)) / max(len(characters), 1)
    characters = [character for character in text if not character.isspace()]
    letters = sum(unicodedata.category(character)[0] in "LM" for character in characters)
    return letters / max(len(characters), 1)


def latin_share(text: str) -> float:
    """Share of Latin letters among the letters; 1 where there are none."""
    if text.isascii():
        return 1.0
    letters = [character for character in text if character.isalpha()]
    latin = sum(character.isascii() or "LATIN" in unicodedata.name(character, "") for character in letters)
    return latin / len(letters) if letters else 1.0
