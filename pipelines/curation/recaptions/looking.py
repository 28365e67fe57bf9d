"""Looks whether recaptions and raw shards have keys in common, before any long work."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipelines.console.progress import ProgressLine
from pipelines.curation.config import CurateConfig
from pipelines.curation.formats.shard import Row
from pipelines.curation.pieces import hash64
from pipelines.curation.raw import Piece, UnreadableShardError, read_rows
from pipelines.curation.recaptions.files import Join, RecaptionFile, normal_key, read_recaptions
from pipelines.curation.recaptions.pieces import RecaptionPiece
from pipelines.curation.steps import file_sha256
from pipelines.dataset.raw_columns import CAPTION_COLUMNS
from pipelines.provenance import redact

_MOST_ROWS = 200_000  # of raw shards to look at
_SHOWN = 2  # keys of each side in an error
_LONGEST_KEY = 100  # characters


def check_join(recaptions: Sequence[RecaptionPiece], pieces: Sequence[Piece], config: CurateConfig) -> None:
    """Reads the keys of all recaptions, and those of raw rows until each origin has one of them.

    Memory: 16 bytes per row of the recaptions. Raises ValueError, in one line with keys of both, if an origin has none
    of the first 200,000 rows, of evenly spaced pieces.
    """
    if not recaptions:
        return
    assert config.join is not None
    keys, examples = _read_keys([piece.file for piece in recaptions], config.join)
    waiting = set(keys)
    seen: list[str] = []
    num_rows = 0
    for row in _raw_rows(pieces, config):
        num_rows += 1
        if (raw := _key_of(row, config.join)) is not None and (key := normal_key(raw, config.join)) is not None:
            seen += [raw] if len(seen) < _SHOWN else []
            value = np.uint64(hash64(key.encode()))
            waiting -= {origin for origin in waiting if _contains(keys[origin], value)}
        if not waiting or num_rows == _MOST_ROWS:
            break
    for origin in sorted(waiting):
        raise ValueError(
            f"captions_from={config.recaptions[origin - 1].uri}: has captions for none of the {num_rows:,} rows of raw "
            f"that were looked at: there, {config.join} is {_shown(seen)}, and here it is {_shown(examples[origin])}; "
            "give another --join, or the recaptions of these images"
        )


def _read_keys(
    files: Sequence[RecaptionFile], join: Join
) -> tuple[dict[int, npt.NDArray[np.uint64]], dict[int, list[str]]]:
    """Returns the sorted hashes of all keys by origin, and some keys."""
    parts: dict[int, list[npt.NDArray[np.uint64]]] = {file.origin: [] for file in files}
    examples: dict[int, list[str]] = {file.origin: [] for file in files}
    with ProgressLine("looked at", len(files), "files of recaptions") as progress:
        for file in files:
            for batch in read_recaptions(file, keys_only=True):
                found = [(row.key, key) for row in batch if (key := normal_key(row.key, join)) is not None]
                parts[file.origin].append(np.array([hash64(key.encode()) for _, key in found], np.uint64))
                examples[file.origin] = (examples[file.origin] + [str(raw) for raw, _ in found[:_SHOWN]])[:_SHOWN]
            progress.add(1)
    keys = {origin: np.concatenate([np.zeros(0, np.uint64), *of_origin]) for origin, of_origin in parts.items()}
    for hashes in keys.values():
        hashes.sort()
    return keys, examples


def _raw_rows(pieces: Sequence[Piece], config: CurateConfig) -> Iterator[Row]:
    """Yields the rows of the first piece, of one in the middle, and so on: of all pieces, far from each other first."""
    for index in _spread(len(pieces)):
        piece = pieces[index]
        if piece.format == "parquet":  # the images need not be read, unless their hashes are to be computed
            kept = (config.join, "status", "row", *CAPTION_COLUMNS)
            columns = tuple(pair for pair in piece.columns if pair[0] in kept or _must_hash(piece, config))
            piece = dataclasses.replace(piece, columns=columns)
        try:
            for batch in read_rows(piece):
                yield from batch
        except UnreadableShardError:
            continue  # curation of the piece reports it


def _must_hash(piece: Piece, config: CurateConfig) -> bool:
    return config.join == "sha256" and "sha256" not in dict(piece.columns)


def _key_of(row: Row, join: Join) -> str | None:
    key = row.get(join)
    if join == "sha256" and key is None and row.get("jpg"):
        return file_sha256(row["jpg"])
    return key


def _spread(count: int) -> Iterator[int]:
    """Yields all numbers below `count`: each as far as possible from the ones before (bits reversed)."""
    num_bits = max(count - 1, 0).bit_length()
    numbers = (int(f"{number:0{num_bits}b}"[::-1], 2) if num_bits else 0 for number in range(2**num_bits))
    return (number for number in numbers if number < count)


def _contains(hashes: npt.NDArray[np.uint64], value: np.uint64) -> bool:
    at = int(np.searchsorted(hashes, value))
    return at < len(hashes) and hashes[at] == value


def _shown(keys: Sequence[str]) -> str:
    return " or ".join(ascii(redact(key)[:_LONGEST_KEY]) for key in keys) or "missing everywhere"
