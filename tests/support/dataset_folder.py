"""Small data sets of noise images, for tests."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.dataset.format import DatasetInfo, digest, sample_id, write_dataset


def make_samples(num_samples, *, seed=0, side=40, corrupt=(), num_captions=1):
    """Rows of the dataset schema; the images at the indices `corrupt` cannot be decoded."""
    rng = np.random.default_rng(seed)
    for index in range(num_samples):
        buffer = io.BytesIO()
        pixels = rng.integers(256, size=(side, side + 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        image = buffer.getvalue()[:200] if index in corrupt else buffer.getvalue()
        captions = [f"a dog and a ball, number {index} of {seed}{' again' * number}" for number in range(num_captions)]
        yield {
            "sample_id": sample_id(image, *captions),
            "image": image,
            "captions": captions,
            "nouns": [["dog", "ball"][: index % 3]] * num_captions,
            "width": side + 8,
            "height": side,
            "source": "noise",
        }


def make_dataset(
    folder: Path, num_samples, *, seed=0, corrupt=(), num_captions=1, rows_per_group=8, groups_per_file=3
) -> DatasetInfo:
    return write_dataset(
        str(folder),
        make_samples(num_samples, seed=seed, corrupt=corrupt, num_captions=num_captions),
        rows_per_group=rows_per_group,
        groups_per_file=groups_per_file,
    )


def make_recaptioned(folder: Path, num_samples, *, seed=0, num_captions=1, rows_per_group=8) -> DatasetInfo:
    """The same samples with two captions of `llava`, but for every fourth one, which has none."""

    def recaptioned(index, row):
        texts = [] if index % 4 == 3 else [f"a wooden table, {word} of picture {index}" for word in ("left", "right")]
        return {
            **row,
            "captions": row["captions"] + texts,
            "caption_origins": ["original"] * len(row["captions"]) + ["llava"] * len(texts),
            "nouns": row["nouns"] + [["table"]] * len(texts),
        }

    rows = make_samples(num_samples, seed=seed, num_captions=num_captions)
    return write_dataset(
        str(folder),
        (recaptioned(index, row) for index, row in enumerate(rows)),
        rows_per_group=rows_per_group,
        groups_per_file=3,
        metadata={"recaptions": {"llava": {"num_samples": num_samples - num_samples // 4}}},
        schema_version=3,
    )


def write_schema_1(folder: Path, samples, *, rows_per_group) -> Path:
    """Write samples, with `caption` a text and `nouns` a list of texts, as data sets of schema 1 were written."""
    columns = [("sample_id", pa.string()), ("image", pa.binary()), ("caption", pa.string())]
    columns += [("nouns", pa.list_(pa.string())), ("width", pa.int32()), ("height", pa.int32())]
    fields = [pa.field(*column, nullable=False) for column in columns]
    fields += [pa.field("source", pa.dictionary(pa.int32(), pa.string()))]
    fields += [pa.field(name, pa.string()) for name in ("url", "license", "sha256")]
    table = pa.Table.from_pylist(list(samples), pa.schema(fields))
    (folder / "data").mkdir(parents=True)
    path = folder / "data/part-000000.parquet"
    pq.write_table(table, path, row_group_size=rows_per_group)
    groups = pq.read_metadata(path).num_row_groups
    parts = [table.slice(index * rows_per_group, rows_per_group) for index in range(groups)]
    manifest = {
        "file": ["data/part-000000.parquet"] * groups,
        "row_group": pa.array(range(groups), pa.int32()),
        "rows": pa.array([part.num_rows for part in parts], pa.int32()),
        "bytes": [_bytes_of(pq.read_metadata(path).row_group(index)) for index in range(groups)],
        "digest": [digest(part.column("sample_id").to_pylist()) for part in parts],
    }
    pq.write_table(pa.table(manifest), folder / "manifest.parquet")
    whole = digest(f"{rows} {name}" for rows, name in zip(manifest["rows"], manifest["digest"], strict=True))
    description = {"schema_version": 1, "num_samples": len(table), "num_row_groups": groups, "digest": whole}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def _bytes_of(group) -> int:
    return sum(group.column(index).total_compressed_size for index in range(group.num_columns))


def damage_files(info: DatasetInfo) -> None:
    """Zeros over the beginning of every file's first row group; footers and manifest stay as they are."""
    for name in info.files:
        file = Path(info.uri, name)
        content = file.read_bytes()
        file.write_bytes(content[:100] + bytes(1000) + content[1100:])
