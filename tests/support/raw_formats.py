"""The same rows as raw shards in each of the formats that `groupvit curate` reads, made by the peers' own writers."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import webdataset
from img2dataset.writer import ParquetSampleWriter, WebDatasetSampleWriter

from pipelines.curation.config import Source
from pipelines.curation.raw import pieces_of, read_rows, read_shards

IMAGE_FEATURE = {
    "info": {
        "features": {
            "image": {"_type": "Image"},
            "text": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
            "url": {"dtype": "string", "_type": "Value"},
        }
    }
}
"""What `datasets` writes to the schema of a parquet file with these columns."""


def write_tars(folder: Path, rows: Iterable[Mapping[str, Any]], rows_per_shard: int) -> Path:
    """By webdataset's own writer."""
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=rows_per_shard, verbose=0) as writer:
        for row in rows:
            others = {name: row[name] for name in ("url", "sha256", "key", "status", "caption")}
            writer.write({"__key__": row["key"], "jpg": row["jpg"], "txt": row["caption"], "json": others})
    return folder


def write_img2dataset(folder: Path, rows: Sequence[Mapping[str, Any]], rows_per_shard: int, kind: str) -> Path:
    """By img2dataset's own writers. `kind`: webdataset or parquet. Beside tars, these write parquet without images."""
    folder.mkdir(parents=True)
    names = ("url", "caption", "key", "status", "error_message", "sha256")
    make = {"webdataset": WebDatasetSampleWriter, "parquet": ParquetSampleWriter}[kind]
    for shard, start in enumerate(range(0, len(rows), rows_per_shard)):
        writer = make(shard, str(folder), True, 5, pa.schema([(name, pa.string()) for name in names]), "jpg")
        part = rows[start : start + rows_per_shard]
        for row in part:
            writer.write(row["jpg"], row["key"], row["caption"], {name: row[name] for name in names})
        writer.close()
        stats = {"count": len(part), "successes": sum(row["jpg"] is not None for row in part)}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
    return folder


def write_hugging_face(folder: Path, rows: Sequence[Mapping[str, Any]], rows_per_shard: int) -> Path:
    """By the writer of `datasets`."""
    import datasets  # takes seconds

    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.List(datasets.Value("string")),
            "url": datasets.Value("string"),
        }
    )
    folder.mkdir(parents=True)
    starts = range(0, len(rows), rows_per_shard)
    for number, start in enumerate(starts):
        part = rows[start : start + rows_per_shard]
        columns = {
            "image": [{"bytes": row["jpg"], "path": f"{row['key']}.jpg"} for row in part],
            "text": [[row["caption"]] for row in part],
            "url": [row["url"] for row in part],
        }
        dataset = datasets.Dataset.from_dict(columns, features=features)
        dataset.to_parquet(folder / f"train-{number:05d}-of-{len(starts):05d}.parquet")
    return folder


def write_folder(folder: Path, rows: Iterable[Mapping[str, Any]], ending: str) -> Path:
    """As the format `imagefolder` of `datasets` wants it. `ending`: csv, tsv or jsonl."""
    (folder / "images").mkdir(parents=True)
    described = []
    for row in rows:
        name = f"images/{row['key']}.jpg"
        if row["jpg"] is not None:
            (folder / name).write_bytes(row["jpg"])
        described.append({"file_name": name, "text": row["caption"], "url": row["url"]})
    with open(folder / f"metadata.{ending}", "w", newline="", encoding="utf-8") as file:
        if ending == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in described)
        else:
            dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if ending == "tsv" else {}
            writer = csv.DictWriter(file, ["file_name", "text", "url"], **dialect)
            writer.writeheader()
            writer.writerows(described)
    return folder


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of these members, in this order, by Python's writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def read_all(uri: object, *columns: str, rows_per_piece: int = 1024) -> list[dict[str, Any]]:
    """All rows of a source, read piece by piece."""
    shards = read_shards([Source(name="x", uri=str(uri))], columns)
    assert not [shard.error for shard in shards if shard.error]
    return [row for piece in pieces_of(shards, rows_per_piece) for batch in read_rows(piece) for row in batch]
