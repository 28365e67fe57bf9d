import dataclasses
import json
from typing import Any

import pytest

from pipelines.curation import run
from pipelines.curation.config import CurateConfig
from pipelines.curation.raw import Piece


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("caption"), "s3://raw/a.parquet: KeyError: 'caption'"),
        (MemoryError(), "s3://raw/a.parquet: MemoryError"),
        (PermissionError(13, "Permission denied"), "s3://raw/a.parquet: [Errno 13] Permission denied"),
        (ValueError("tagger=x: unknown"), "tagger=x: unknown"),
    ],
)
def test_an_error_of_any_kind_names_the_shard(error: Exception, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    curator = run.PieceCurator(CurateConfig(raw=("raw",), out="out"), "work")
    monkeypatch.setattr(run, "curate_piece", fail)
    piece = Piece(number=0, source=0, first_of_source=0, uri="s3://raw/a.parquet", first=0, end=1, num_rows=1)
    assert curator({"piece": [json.dumps(dataclasses.asdict(piece))]}) == {"report": [""], "error": [line]}
