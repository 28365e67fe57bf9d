"""Row groups that unpack to more than there is memory."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.format import open_dataset
from pipelines.dataset.row_groups import read_columns, runs_of
from tests.support.dataset_folder import make_dataset

UNPACKED = 50_000_000


def test_a_row_group_that_unpacks_to_more_than_the_free_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path, 4)
    (file,) = (tmp_path / "data").iterdir()
    table = pq.read_table(file)
    place = table.column_names.index("image")
    zeros = pa.array([bytes(UNPACKED), b"", b"", b""], pa.binary())
    pq.write_table(table.set_column(place, "image", zeros), file, compression="zstd", use_dictionary=False)
    assert file.stat().st_size < UNPACKED / 100
    info = open_dataset(str(tmp_path))
    [run] = runs_of(info, info.first_groups)
    assert read_columns(info, run, ["image"]).nbytes >= UNPACKED  # with memory enough, it is read
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=UNPACKED // 2, total=2**34))
    message = (
        rf"^{file}: is corrupted or incomplete \(row group 0 unpacks to 50,\d+,\d+ bytes, more than the 25,000,000"
    )
    with pytest.raises(ValueError, match=message) as caught:
        read_columns(info, run, ["image"])
    assert "\n" not in str(caught.value)
