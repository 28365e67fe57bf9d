"""CLIP's byte pair encoding, on the `tokenizers` library.

It gives the same ids as the reference tokeniser (https://github.com/openai/CLIP, MIT), with one exception: text like a
special token ("<end_of_text>") is encoded as ordinary characters, so that a caption from the web cannot inject one.
"""

import gzip
import hashlib
import html
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from groupvit.late_import import LateImport

ftfy = LateImport("ftfy", "fixing text that is not plain ASCII")

START_OF_TEXT = 49406
END_OF_TEXT = 49407
VOCABULARY_SIZE = 49408

VOCABULARY_FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
_VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
_NUM_MERGES = 49152 - 256 - 2
_SPACE = "\u0120"
"""A space in the byte alphabet."""

# The reference compiles its pattern with IGNORECASE. Text is lower case by then, except for the long s (U+017F), which
# matches s but has no lower case of its own. The combining iota (U+0345) is in none of the reference's classes: it is
# not a letter, but matches one.
_WORD_PATTERN = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{0345}]+"


def fix_text(text: str) -> str:
    """Fix broken unicode, undo HTML escapes and collapse white space."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else ftfy and unescape change nothing
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def clean(text: str) -> str:
    """Apply `fix_text` and convert to lower case, as CLIP does before encoding."""
    return fix_text(text).lower()


Tokenize = Callable[[Sequence[str], int], npt.NDArray[np.int32]]
"""(texts, context length) → token ids int32 [N, T], for example a `Tokenizer`."""


class Tokenizer:
    """Converts texts to token ids of CLIP's vocabulary of 49,408 entries."""

    def __init__(self, vocabulary_file: Path = VOCABULARY_FILE) -> None:
        """Load the vocabulary. `ValueError` if its file is not the published one."""
        vocabulary, merges = byte_pairs(vocabulary_file)
        self._encoder = tokenizers.Tokenizer(
            models.BPE(
                # Without the two special tokens, so that no text can be encoded as one; their ids come last.
                vocab=vocabulary,
                merges=merges,
                end_of_word_suffix="</w>",
                continuing_subword_prefix="",
            )
        )
        self._encoder.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
            [
                pre_tokenizers.Split(tokenizers.Regex(_WORD_PATTERN), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def __call__(self, texts: Sequence[str], context_length: int = 77) -> npt.NDArray[np.int32]:
        """Encode texts as int32 [N, context_length]: start of text, the text, end of text, zeros.

        A text that is too long is truncated. Its last id is then the end of text, where the text encoder reads.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts: {texts!r} is one string; pass a list of strings")
        if context_length < 2:
            raise ValueError(f"context_length: {context_length} leaves no room for the start and end of text; use >= 2")
        token_ids = np.zeros((len(texts), context_length), dtype=np.int32)
        encodings = self._encoder.encode_batch_fast([clean(text) for text in texts])
        for row, encoding in zip(token_ids, encodings, strict=True):
            ids = encoding.ids[: context_length - 2]
            row[0] = START_OF_TEXT
            row[1 : 1 + len(ids)] = ids
            row[1 + len(ids)] = END_OF_TEXT
        return token_ids

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Numbers of ids of texts, with the start and end of text, before any truncation."""
        return [len(encoding.ids) + 2 for encoding in self._encoder.encode_batch_fast([clean(text) for text in texts])]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a row of token ids as the model sees it: cleaned, and cut to the context."""
        ids = [int(token) for token in token_ids]
        inner = ids[1 : ids.index(END_OF_TEXT)]
        words = [(self._encoder.id_to_token(token) or "").replace("</w>", _SPACE) for token in inner]
        return decoders.ByteLevel().decode(words).strip()


def byte_pairs(file: Path = VOCABULARY_FILE) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Read the vocabulary: ids of all entries except the two special tokens, and the merges.

    `ValueError` if the file is not the published one.
    """
    packed = file.read_bytes()
    if hashlib.sha256(packed).hexdigest() != _VOCABULARY_SHA256:
        raise ValueError(f"{file}: corrupted, its sha256 must be {_VOCABULARY_SHA256}; reinstall groupvit")
    lines = gzip.decompress(packed).decode().split("\n")
    merges = [(first, second) for first, second in map(str.split, lines[1 : _NUM_MERGES + 1])]
    symbols = _byte_symbols()
    entries = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in merges)]
    assert len(entries) == START_OF_TEXT
    return {entry: index for index, entry in enumerate(entries)}, merges


def _byte_symbols() -> list[str]:
    """One printable character per byte, in CLIP's order of ids (GPT-2's byte alphabet)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    num_others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(num_others)]
