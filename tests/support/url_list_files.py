"""URL lists as tests write and read them."""

import gzip
import json
import tempfile
from pathlib import Path

from pipelines.url_lists.presets import Columns
from pipelines.url_lists.reading import list_files, read_list
from pipelines.url_lists.rejected import RejectedRows

PAIRS = [("http://a/1.jpg", 'a "big" dog'), ("http://a/2.jpg", '"quoted, with comma"'), ("http://a/3.jpg", "NA")]


def read(path, columns=None, max_bad_rows=0.01):
    """The rows of a list, and the entries of its bad rows."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "rejected.jsonl"
        with RejectedRows(record, max_bad_rows) as rejected:
            tables = list(read_list(list_files(str(path)), columns or Columns(), rejected))
        entries = [json.loads(line) for line in record.read_text().splitlines()]
        assert sum(rejected.counts.values()) == len(entries)
    return [row for table in tables for row in table.to_pylist()], entries


def rows_of(path, columns=None):
    return read(path, columns)[0]


def bad_rows_of(path, **options):
    """Line (or row) and reason of each bad row; all are of the same file."""
    _, entries = read(path, max_bad_rows=1, **options)
    assert {entry["file"] for entry in entries} <= {str(path)} and all(entry["found"] for entry in entries)
    return [(entry.get("line") or entry.get("row"), entry["reason"]) for entry in entries]


def pairs_of(path, columns=None):
    return [(row["url"], row["caption"]) for row in rows_of(path, columns)]


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path
