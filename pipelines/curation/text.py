"""Captions: cleans them, and recognises names, codes and texts in other alphabets."""

import re
import unicodedata

from groupvit.captions import name_person
from groupvit.tokenizer import fix_text

_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,300}>")  # <b>, <a href=...>

_MISSING = re.compile(r"#N/A|#N/A N/A|#NA|-?1\.#(?:IND|QNAN)|-?(?:NaN|nan)|<NA>|N/A|NA|NULL|None|n/a|null")
"""What pandas reads as a missing value, in this case only, and what tools write for one."""

_EXTENSION = (
    r"\.(?:jpe?g|jpe|jfif|png|gif|webp|bmp|tiff?|hei[cf]|avif|jxl|svg|psd|eps|raw|cr2|nef|arw|dng"
    r"|mp4|mov|avi|webm|pdf|html?|php|aspx?)"
)
_NAME = re.compile(
    r"(?:https?|ftp)://\S+|www\.\S+|[\w-]+(?:\.[\w-]+)*\.(?:com|org|net)(?:/\S*)?"  # URLs and hosts
    r"|(?:[\w-]+\.)+[a-z]{2,}/\S*"
    rf"|\S+{_EXTENSION}(?:[?#:]\S*)?"  # holiday-03.JPG, a.png?w=200
    r"|(?:img|dsc[nf]?|pict|sam|gopr|pxl|imag|mvi|vid)[_-]?\d[\w-]*|p\d{6,8}",  # IMG_2034
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    rf"(?:(?:img|dsc[nf]?)[ _-]?\d+|(?:img|image|photo|picture|screen ?shot|untitled|scan|download|unnamed)"
    rf"[\s\d_.:()-]*(?:at [\s\d_.:()-]*)?{_EXTENSION})",
    re.IGNORECASE,
)
"""Names with spaces: IMG 2034, Screenshot 2026-01-05 at 12.33.png."""
_LONGEST_NUMBERED = 100  # characters


def clean_caption(text: str) -> str:
    """Fixes the unicode, removes HTML escapes and tags, and collapses spaces. <PERSON>, a removed name, becomes a
    person.

    Keeps the case. Cleaning a clean caption only changes text that now looks like markup.
    """
    return " ".join(_TAG.sub(" ", name_person(fix_text(text))).split())


def is_missing(caption: str) -> bool:
    """Whether a caption only stands for a missing value: nan, None."""
    return _MISSING.fullmatch(caption) is not None


def is_name(caption: str) -> bool:
    """Whether a caption consists of URLs or file names only, apart from numbers and signs."""
    if len(caption) <= _LONGEST_NUMBERED and _NUMBERED.fullmatch(caption):
        return True
    words = [word for word in caption.split() if any(map(str.isalpha, word))]
    return bool(words) and all(_NAME.fullmatch(word.strip("()[]<>\"',;")) for word in words)


def letter_share(text: str) -> float:
    """Share of letters, including their marks, among the characters that are not white space."""
    if text.isascii():
        characters = text.replace(" ", "")
        return sum(map(str.isalpha, characters)) / max(len(characters), 1)
    characters = [character for character in text if not character.isspace()]
    letters = sum(unicodedata.category(character)[0] in "LM" for character in characters)
    return letters / max(len(characters), 1)


def latin_share(text: str) -> float:
    """Share of Latin letters among the letters; 1 if there are none."""
    if text.isascii():
        return 1.0
    letters = [character for character in text if character.isalpha()]
    latin = sum(character.isascii() or "LATIN" in unicodedata.name(character, "") for character in letters)
    return latin / len(letters) if letters else 1.0
