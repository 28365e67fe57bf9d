"""Cuts captions that are longer than what the text encoder reads: after a whole sentence, else after a whole word."""

import functools
import re
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from groupvit.tokenizer import Tokenizer

if TYPE_CHECKING:
    from spacy.language import Language

_WORD = re.compile(r"\S+")
_LOOSE_ENDS = " ,;:-–—(["  # after the last word of a caption that is cut within a sentence


def cut_captions(captions: Sequence[str], context_length: int) -> list[str]:
    """Returns clean captions with at most `context_length` tokens each, start and end of text included.

    A longer caption keeps the whole sentences at its start that fit. If its first sentence does not fit, it keeps the
    whole words that do; nothing, if its first word does not fit.
    """
    lengths = _tokenizer().lengths(captions)
    return [
        caption if length <= context_length else _cut(caption, context_length)
        for caption, length in zip(captions, lengths, strict=True)
    ]


def _cut(caption: str, context_length: int) -> str:
    # A word has at least one token, so no more words than these can fit.
    words = [match.end() for match in islice(_WORD.finditer(caption), context_length)]
    head = caption[: words[-1]]
    sentences = [sentence.end_char for sentence in _sentences()(head).sents if _ends(head, sentence.end_char)]
    at_sentence = _longest_that_fits(head, sentences, context_length)
    return at_sentence or _longest_that_fits(head, words, context_length).rstrip(_LOOSE_ENDS)


def _ends(text: str, end: int) -> bool:
    """Whether what follows looks like a new sentence: after "No. 5" and "approx. five", the sentence goes on."""
    following = text[end:].lstrip()[:1]
    return not (following.islower() or following.isdigit())


def _longest_that_fits(text: str, ends: Sequence[int], context_length: int) -> str:
    """Returns the text up to the last of `ends`, ascending, at which it fits; an empty one if it never does."""
    lengths = _tokenizer().lengths([text[:end] for end in ends])
    fitting = [end for end, length in zip(ends, lengths, strict=True) if length <= context_length]
    return text[: max(fitting, default=0)].strip()


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer()


@functools.cache
def _sentences() -> "Language":
    """spaCy's rules for English. They know that "Dr." and "e.g." end no sentence."""
    import spacy  # slow to import, and only needed for long captions

    language = spacy.blank("en")
    language.add_pipe("sentencizer")
    return language
