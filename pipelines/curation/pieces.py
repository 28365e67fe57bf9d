"""Runs the steps that look at one sample alone over a piece of a raw shard.

The samples that pass are written to OUT/_curation, in the order in which the data set will hold them:

records/PIECE-RUN        samples back to back, each its image and then the rest as JSON
index/PIECE.parquet      one row per caption: the location of its sample, and the hashes by which samples and captions
                         are compared. Written last: a piece without it is not done
"""

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from groupvit.captions import mine_nouns
from pipelines import storage
from pipelines.curation.config import CurateConfig
from pipelines.curation.formats.shard import SKIP_ADVICE
from pipelines.curation.raw import Piece, UnreadableShardError, read_rows
from pipelines.curation.recaptions.files import Join, normal_key
from pipelines.curation.steps import Sample, Step, raw_captions
from pipelines.dataset.format import sample_id

ROWS_PER_RUN = 1024
"""Number of samples that are held in memory, and sorted, at a time."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("order", pa.int64(), nullable=False),  # canonical: the first of two duplicates is kept
        pa.field("number", pa.int32(), nullable=False),  # index of the caption within its sample
        pa.field("source", pa.int32(), nullable=False),
        pa.field("shuffle_key", pa.uint64(), nullable=False),  # determines the sample's position in the data set
        pa.field("caption", pa.uint64(), nullable=False),  # hashes
        pa.field("content", pa.uint64(), nullable=False),
        pa.field("original", pa.uint64(), nullable=False),
        pa.field("perceptual", pa.uint64()),  # null: flat image
        pa.field("piece", pa.int32(), nullable=False),
        pa.field("run", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),  # in bytes, in the run's file
        pa.field("image_bytes", pa.int32(), nullable=False),
        pa.field("bytes", pa.int32(), nullable=False),
    ]
)
JOIN = pa.field("join", pa.uint64())
"""Column that the index also has if there are recaptions: a hash of the sample's key, null without one."""
NOTES = {
    "several_images": "with several images: the first of jpg, jpeg, png, webp is used",
    "link": "with links to files, which are not followed",
    "invalid_json": "with a .json that is not an object, which is ignored",
}
_ROWS_OF_A_PIECE = 2**32  # more than any piece has: the unit of `order`, per piece
_REPORT = b"groupvit.curation"


@dataclass(kw_only=True)
class Report:
    """Counts the outcomes for the rows of a piece, or of several."""

    num_rows: int = 0
    num_bytes: int = 0
    """Total size of the input images."""
    drops: Counter[str] = field(default_factory=Counter)
    num_captions: int = 0
    """Number of captions of all rows. A row without captions counts as one, which is empty."""
    caption_drops: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Time of each step."""
    notes: Counter[str] = field(default_factory=Counter)
    """Number of samples that were odd in a way of NOTES, kept or not."""
    unreadable: list[str] = field(default_factory=list)
    """Why shards could not be read to their end."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def to_json(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Report":
        values = json.loads(text)
        counters = {name: Counter(values.get(name)) for name in ("drops", "caption_drops", "notes")}
        return cls(**{**values, **counters, "seconds": defaultdict(float, values["seconds"])})

    def add(self, other: "Report") -> None:
        self.num_rows += other.num_rows
        self.num_bytes += other.num_bytes
        self.num_captions += other.num_captions
        self.drops.update(other.drops)
        self.caption_drops.update(other.caption_drops)
        self.notes.update(other.notes)
        self.unreadable += other.unreadable
        for step, seconds in other.seconds.items():
            self.seconds[step] += seconds


def curate_piece(piece: Piece, config: CurateConfig, steps: Sequence[Step], work: str) -> Report:
    """Runs the steps over a piece and writes the samples that pass to the folder `work`.

    Raises UnreadableShardError if the shard is corrupted. If such shards are skipped, it counts the unreadable rows
    instead.
    """
    report = Report()
    index: list[pa.Table] = []
    kept: list[tuple[int, Sample]] = []

    def flush() -> None:
        if kept:
            index.append(_write_run(piece, len(index), kept, config, report, work))
            kept.clear()

    for number, sample in _kept(piece, config, steps, report):
        kept.append((number, sample))
        if len(kept) == ROWS_PER_RUN:
            flush()
    flush()
    table = pa.concat_tables([_schema(config).empty_table(), *index])
    with report.timed("write"):
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({_REPORT: report.to_json()}), sink)
        storage.write_bytes(index_uri(work, piece.number), memoryview(sink.getvalue()))
    return report


def run_steps(sample: Sample, steps: Sequence[Step], seconds: MutableMapping[str, float]) -> str | None:
    """Returns the reason for dropping a sample, or None if it passes. Adds the time of each step to `seconds`."""
    start = time.perf_counter()
    for step in steps:
        reason = step.check(sample)
        end = time.perf_counter()
        seconds[step.name] += end - start
        if reason is not None:
            return reason
        start = end
    return None


def add_nouns(samples: Sequence[Sample], tagger: str) -> None:
    captions = [caption for sample in samples for caption in sample.captions]
    nouns = iter(list(mine_nouns(captions, tagger=tagger)))
    for sample in samples:
        sample.nouns = list(islice(nouns, len(sample.captions)))


def read_report(work: str, piece: int) -> Report:
    """Reads the report of a finished piece."""
    with storage.open_parquet(index_uri(work, piece)) as file:
        return Report.from_json(file.schema_arrow.metadata[_REPORT])


def index_uri(work: str, piece: int) -> str:
    return storage.join(work, "index", f"{piece:08d}.parquet")


def records_uri(work: str, piece: int, run: int) -> str:
    return storage.join(work, "records", f"{piece:08d}-{run:04d}")


def rest_of_record(rest: bytes) -> dict[str, Any]:
    """Parses what follows the image in a record: a row of the data set without image and source."""
    return json.loads(rest)


def _kept(piece: Piece, config: CurateConfig, steps: Sequence[Step], report: Report) -> Iterator[tuple[int, Sample]]:
    """Yields the samples that pass, with their numbers within the piece. Accounts for all rows of the piece."""
    batches, superseded = read_rows(piece), frozenset(piece.superseded)
    num_read = 0
    while True:
        with report.timed("read"):
            try:
                batch = next(batches, None)
            except UnreadableShardError as error:
                if not config.skip_unreadable_shards:
                    raise
                report.unreadable.append(str(error).removesuffix(f"; {SKIP_ADVICE}"))
                batch = None
        if batch is None:
            break
        for number, raw in enumerate(batch, start=num_read):
            if superseded and raw.get("row") in superseded:
                continue
            report.num_rows += 1
            report.notes.update(raw.get("notes", ()))
            report.num_bytes += len(raw["jpg"] or b"")
            num_captions = len(raw_captions(raw))
            report.num_captions += num_captions
            sample = Sample(raw=raw)
            reason = run_steps(sample, steps, report.seconds)
            report.caption_drops.update(sample.caption_drops)
            if reason is not None and (left := num_captions - sample.caption_drops.total()):
                report.caption_drops["image_dropped"] += left
            if reason is None:
                sample.raw = {**raw, "jpg": None}
                yield number, sample
            else:
                report.drops[reason] += 1
        num_read += len(batch)
    missing = piece.num_rows - num_read  # more rows than the footer says are used as well
    if not piece.counted:
        missing = min(1, len(report.unreadable))  # nobody knows how many samples a cut tar had: the one that is cut
    if missing > 0:
        if not config.skip_unreadable_shards:
            raise UnreadableShardError(
                f"raw={piece.uri}: is corrupted ({missing} rows fewer than its footer says); {SKIP_ADVICE}"
            )
        report.num_rows += missing
        report.drops["shard_unreadable"] += missing


def _write_run(
    piece: Piece, run: int, kept: Sequence[tuple[int, Sample]], config: CurateConfig, report: Report, work: str
) -> pa.Table:
    with report.timed("nouns"):
        add_nouns([sample for _, sample in kept], config.tagger)
    with report.timed("write"):
        entries: list[tuple[dict[str, Any], bytes, bytes]] = []
        for number, sample in kept:
            name = sample_id(sample.image, *sample.captions)
            rest = json.dumps(_columns(name, sample)).encode()
            entry = {
                "order": _order(piece, number, sample.raw.get("row")),
                "source": piece.source,
                "shuffle_key": hash64(f"{config.seed} {name}".encode()),
                "content": hash64(sample.image),
                "original": hash64(sample.sha256.encode()),
                "perceptual": sample.perceptual_hash,
                "piece": piece.number,
                "run": run,
                "captions": [hash64(caption.encode()) for caption in sample.captions],
            }
            if config.join is not None:
                entry["join"] = _join_key(sample, config.join)
            entries.append((entry, sample.image, rest))
        entries.sort(key=lambda entry: (entry[0]["shuffle_key"], entry[0]["order"]))
        offset = 0
        index: list[dict[str, Any]] = []
        for entry, image, rest in entries:
            entry |= {"offset": offset, "image_bytes": len(image), "bytes": len(image) + len(rest)}
            offset += entry["bytes"]
            captions = entry.pop("captions")
            index += [{**entry, "number": number, "caption": caption} for number, caption in enumerate(captions)]
        content = b"".join(part for _, image, rest in entries for part in (image, rest))
        storage.write_bytes(records_uri(work, piece.number, run), content)
        return pa.Table.from_pylist(index, schema=_schema(config))


def _schema(config: CurateConfig) -> pa.Schema:
    return INDEX_SCHEMA if config.join is None else INDEX_SCHEMA.append(JOIN)


def _join_key(sample: Sample, join: Join) -> int | None:
    key = normal_key(sample.sha256 if join == "sha256" else sample.raw.get(join), join)
    return None if key is None else hash64(key.encode())


def _order(piece: Piece, number: int, row: float | None) -> int:
    """Orders samples in the corpus: by source, then by row in the URL list. Shards hold rows in the order of arrival,
    which differs between downloads. If the shards do not store the row, orders by position in them.
    """
    if row is None:
        return piece.number * _ROWS_OF_A_PIECE + number
    return piece.first_of_source * _ROWS_OF_A_PIECE + int(row)


def _columns(name: str, sample: Sample) -> Mapping[str, Any]:
    return {
        "sample_id": name,
        "captions": sample.captions,
        "nouns": sample.nouns,
        "width": sample.width,
        "height": sample.height,
        "url": sample.raw.get("url"),
        "license": sample.raw.get("license"),
        "sha256": sample.sha256,
    }


def hash64(content: bytes) -> int:
    """Hashes to 64 bits. Among a billion different contents, the probability of a collision is below 3 %."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8])
