"""Runs the rules for captions over files of recaptions, and writes those that pass to OUT/_curation.

records/PIECE-RUN          texts back to back
recaptions/PIECE.parquet   one row per caption: its key, and the location of its text. Written last: a piece without it
                           is not done
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.curation.config import CurateConfig
from pipelines.curation.long_captions import cut_captions
from pipelines.curation.pieces import hash64, records_uri
from pipelines.curation.recaptions.files import RecaptionFile, normal_key, read_recaptions
from pipelines.curation.steps import wrong_with_caption
from pipelines.curation.text import clean_caption

RECAPTIONS_SCHEMA = pa.schema(
    [
        pa.field("join", pa.uint64(), nullable=False),  # hash of the key
        pa.field("origin", pa.int8(), nullable=False),  # number of the origin, from 1
        pa.field("order", pa.int64(), nullable=False),  # canonical: by file, then by place in it
        pa.field("caption", pa.uint64(), nullable=False),  # hash; equal texts of two origins differ
        pa.field("piece", pa.int32(), nullable=False),
        pa.field("run", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),  # in bytes, in the run's file
        pa.field("bytes", pa.int32(), nullable=False),
    ]
)
_BYTES_PER_RUN = 2**23
_CAPTIONS_OF_A_PIECE = 2**32  # more than any file has
_REPORT = b"groupvit.recaptions"


@dataclass(frozen=True, kw_only=True)
class RecaptionPiece:
    """A file, with its place among all pieces of a curation."""

    number: int
    """Those of raw shards come first."""
    file: RecaptionFile


@dataclass(kw_only=True)
class RecaptionReport:
    """Counts what became of the captions of a file, or of several, before they are joined with samples."""

    num_rows: int = 0
    num_without_key: int = 0
    """Number of rows without a key. Their captions are counted nowhere else."""
    num_captions: int = 0
    num_cut: int = 0
    """Number of captions that were too long for the text encoder, and cut."""
    drops: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "RecaptionReport":
        values = json.loads(text)
        return cls(**{**values, "drops": Counter(values["drops"])})

    def add(self, other: "RecaptionReport") -> None:
        self.num_rows += other.num_rows
        self.num_without_key += other.num_without_key
        self.num_captions += other.num_captions
        self.num_cut += other.num_cut
        self.drops.update(other.drops)


def curate_recaptions(piece: RecaptionPiece, config: CurateConfig, work: str) -> RecaptionReport:
    """Writes the captions of a file that pass to the folder `work`.

    Memory: about 100 bytes per caption, and some megabytes of texts. Raises ValueError, in one line, if the file is
    corrupted.
    """
    report = RecaptionReport()
    index: list[pa.Table] = []
    texts: list[bytes] = []
    rows: list[dict[str, Any]] = []
    num_bytes = 0

    def flush() -> None:
        nonlocal num_bytes
        if rows:
            storage.write_bytes(records_uri(work, piece.number, len(index)), b"".join(texts))
            index.append(pa.Table.from_pylist(rows, schema=RECAPTIONS_SCHEMA))
            texts.clear()
            rows.clear()
            num_bytes = 0

    for place, (key, caption) in enumerate(_kept(piece.file, config, report)):
        text = caption.encode()
        rows.append(
            {
                "join": hash64(key.encode()),
                "origin": piece.file.origin,
                "order": piece.number * _CAPTIONS_OF_A_PIECE + place,
                "caption": hash64(f"{piece.file.origin} {caption}".encode()),
                "piece": piece.number,
                "run": len(index),
                "offset": num_bytes,
                "bytes": len(text),
            }
        )
        texts.append(text)
        num_bytes += len(text)
        if num_bytes > _BYTES_PER_RUN:
            flush()
    flush()
    sink = pa.BufferOutputStream()
    table = pa.concat_tables([RECAPTIONS_SCHEMA.empty_table(), *index])
    pq.write_table(table.replace_schema_metadata({_REPORT: report.to_json()}), sink)
    storage.write_bytes(recaptions_uri(work, piece.number), memoryview(sink.getvalue()))
    return report


def read_recaption_report(work: str, piece: int) -> RecaptionReport:
    """Reads the report of a finished piece."""
    with storage.open_parquet(recaptions_uri(work, piece)) as file:
        return RecaptionReport.from_json(file.schema_arrow.metadata[_REPORT])


def recaptions_uri(work: str, piece: int) -> str:
    return storage.join(work, "recaptions", f"{piece:08d}.parquet")


def _kept(file: RecaptionFile, config: CurateConfig, report: RecaptionReport) -> Iterator[tuple[str, str]]:
    """Yields the captions that pass, cleaned and cut, with their keys."""
    assert config.join is not None
    for batch in read_recaptions(file):
        keys: list[str] = []
        captions: list[str] = []
        for row in batch:
            report.num_rows += 1
            key = normal_key(row.key, config.join)
            if key is None:
                report.num_without_key += 1
                continue
            keys += [key] * len(row.captions)
            captions += [clean_caption(text) if text else "" for text in row.captions]
        report.num_captions += len(captions)
        for key, caption, cut in zip(keys, captions, _cut(captions, config), strict=True):
            reason = wrong_with_caption(cut, config) if cut or not caption else "caption_too_long"
            if reason is not None:
                report.drops[reason] += 1
                continue
            report.num_cut += cut != caption
            yield key, cut


def _cut(captions: Sequence[str], config: CurateConfig) -> list[str]:
    return cut_captions(captions, config.context_length) if captions else []
