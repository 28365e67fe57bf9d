"""Parses the words that a user wants to find in an image, and checks them before any work is done."""

from collections.abc import Sequence

import numpy as np

from groupvit.tokenizer import Tokenize

BACKGROUND = "background"
MAX_WORDS = 254
"""Labels are bytes: one is the background's, and 255 marks ignored pixels."""
MAX_CHARACTERS = 10_000
"""Largest length of a word. No context is that long, so longer words are rejected before tokenisation."""


def parse_words(text: str) -> list[str]:
    """Split a text at commas and line breaks. Empty words are dropped, and white space is collapsed."""
    words = (" ".join(word.split()) for line in text.splitlines() for word in line.split(","))
    return [word for word in words if word]


def check_words(words: Sequence[str], *, background: bool) -> None:
    """Raise ValueError unless these are 1 to 254 different words, none of them empty. With `background`, none may be
    "background", which is then a label of its own."""
    if not words:
        raise ValueError('classes is empty: give one or more words, like "dog, grass"')
    if len(words) > MAX_WORDS:
        raise ValueError(f"classes has {len(words)} words: give at most {MAX_WORDS}")
    seen: dict[str, str] = {}
    for word in words:
        key = " ".join(word.split()).casefold()
        if not key:
            raise ValueError(f"classes has an empty word ({word!r}): leave it out")
        if key in seen:
            twice = f"{seen[key]!r} twice" if seen[key] == word else f"{seen[key]!r} and {word!r}, which are the same"
            raise ValueError(f"classes has {twice}: give each word once")
        if background and key == BACKGROUND:
            raise ValueError(
                f"classes has {word!r}, which is what suits no other word already: leave it out, or switch the "
                "background off"
            )
        seen[key] = word


def check_lengths(words: Sequence[str], templates: Sequence[str], tokenize: Tokenize, context_length: int) -> None:
    """Raise ValueError for a word without tokens, or one too long for the text encoder's context with any template.

    The encoder would not see the end of a longer word, and nothing of the template after it.
    """
    for word in words:
        if len(word) > MAX_CHARACTERS:
            raise ValueError(
                f"class {_shortened(word)!r} has {len(word):,} characters: give a name, not a text (at most "
                f"{context_length - 2} tokens)"
            )
    overhead = max(_lengths([template.replace("{}", "") for template in templates], tokenize))
    fitting = context_length - 2 - overhead  # without the start and the end of the text
    if fitting < 1:
        raise ValueError(f"templates={templates} leave no token of the model's {context_length} for a class name")
    alone = _lengths(words, tokenize)
    for index, word in enumerate(words):
        if not alone[index]:
            raise ValueError(f"class {word!r} holds nothing that can be read: leave it out")
        prompt_length = max(_lengths([template.replace("{}", word) for template in templates], tokenize))
        if prompt_length > context_length - 2:
            raise ValueError(
                f"class {_shortened(word)!r} has {alone[index]} tokens, and {fitting} fit into the model's context of "
                f"{context_length} beside its template: give a shorter name"
            )


def _lengths(texts: Sequence[str], tokenize: Tokenize) -> list[int]:
    """Number of tokens of each text, without the start and the end."""
    roomy = 2 + 4 * max(
        len(text.encode()) for text in texts
    )  # `fix_text` may lengthen texts; a token is 1 byte or more
    token_ids = tokenize(texts, roomy)
    # The end has the largest id. The padding cannot be used instead: 0 is also the id of a token.
    return [int(position) - 1 for position in np.argmax(token_ids, axis=1)]


def _shortened(word: str) -> str:
    return word if len(word) <= 40 else word[:39] + "…"
