"""Reads the index that the pieces of raw shards have left."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.curation.duplicates import KEEP, MARKS_SCHEMA, file_of
from pipelines.curation.pieces import index_uri


def read_index(work: str, pieces: Sequence[int], num_files: int) -> pa.Table:
    """[MARKS_SCHEMA] Reads the index of some pieces. With recaptions, there is also the column `join`."""
    read = (pq.read_table(pa.BufferReader(storage.read_bytes(index_uri(work, piece)))) for piece in pieces)
    rows = pa.concat_tables([table.replace_schema_metadata() for table in read])
    file = file_of(rows.column("shuffle_key").to_numpy(), num_files)
    rows = rows.append_column(MARKS_SCHEMA.field("file"), pa.array(file))
    rows = rows.append_column(MARKS_SCHEMA.field("keeper"), rows.column("order"))
    rows = rows.append_column(MARKS_SCHEMA.field("mark"), pa.array(np.full(len(rows), KEEP, dtype=np.int8)))
    return rows.append_column(MARKS_SCHEMA.field("origin"), pa.array(np.zeros(len(rows), dtype=np.int8)))
