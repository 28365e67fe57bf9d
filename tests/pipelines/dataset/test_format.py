import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.format import DATASET_SCHEMA, open_dataset, sample_id, write_dataset
from tests.support.dataset_folder import make_dataset, make_samples


def test_writes_what_it_was_given_in_small_row_groups_of_several_files(tmp_path):
    info = make_dataset(tmp_path / "data set", 60)
    assert info.num_samples == 60 and info.files == tuple(f"data/part-{index:06d}.parquet" for index in range(3))
    assert info.rows.tolist() == [8] * 7 + [4] and info.first_groups.tolist() == [0, 3, 6]
    tables = [pq.read_table(f"{info.uri}/{file}") for file in info.files]
    assert all(table.schema.equals(DATASET_SCHEMA) for table in tables)
    rows = pa.concat_tables(tables, promote_options="permissive").to_pylist()
    missing = {"url": None, "license": None, "sha256": None}
    assert rows == [sample | missing for sample in make_samples(60)]
    assert pq.read_metadata(f"{info.uri}/{info.files[0]}").row_group(1).num_rows == 8


def test_opens_as_it_was_written_and_says_so(tmp_path):
    written = write_dataset(str(tmp_path / "a"), make_samples(5), metadata={"drops": {"too small": 3}})
    opened = open_dataset(str(tmp_path / "a"))
    assert opened.digest == written.digest and opened.metadata["drops"] == {"too small": 3}
    assert opened.metadata["schema_version"] == 2


def test_the_manifest_counts_bytes_to_read(tmp_path):
    info = make_dataset(tmp_path, 24)
    manifest = pq.read_table(tmp_path / "manifest.parquet").to_pylist()
    images = [len(sample["image"]) for sample in make_samples(24)]
    for group, entry in enumerate(manifest):
        assert sum(images[8 * group : 8 * group + 8]) < entry["bytes"] < 1.2 * sum(images[8 * group : 8 * group + 8])
    assert sum(entry["bytes"] for entry in manifest) < (tmp_path / info.files[0]).stat().st_size


def test_the_digest_follows_the_content_not_the_place(tmp_path):
    first = make_dataset(tmp_path / "a", 20)
    assert make_dataset(tmp_path / "b", 20).digest == first.digest
    assert make_dataset(tmp_path / "c", 20, seed=1).digest != first.digest
    assert make_dataset(tmp_path / "d", 20, rows_per_group=4).digest != first.digest  # another order of samples


def test_sample_id_follows_image_and_caption():
    ids = {sample_id(*pair) for pair in [(b"ab", "c"), (b"a", "bc"), (b"ab", "d"), (b"", "abc"), (b"abc", "")]}
    assert len(ids) == 5 and all(len(name) == 32 for name in ids)
    assert sample_id(b"ab", "c") == "3afb804be950133d980fdf5d9f30669c"  # of sha256sum: ids must never change
    several = {
        sample_id(b"ab", *captions) for captions in [("c", "d"), ("d", "c"), ("cd",), ("c", "d", ""), ("", "cd")]
    }
    assert len(several) == 5
    assert sample_id(b"ab", "c", "d") == "19f294e34c3df36d8104dff271d1d817"  # the same of the sha256 of each part


def test_is_invisible_until_it_is_complete(tmp_path):
    def broken():
        yield from make_samples(30)
        raise RuntimeError("out of disk")

    with pytest.raises(RuntimeError, match="out of disk"):
        write_dataset(str(tmp_path), broken(), rows_per_group=8, groups_per_file=1)
    assert list((tmp_path / "data").iterdir())
    with pytest.raises(ValueError, match=r"no dataset\.json"):
        open_dataset(str(tmp_path))


def test_refuses_to_overwrite(tmp_path):
    make_dataset(tmp_path, 5)
    with pytest.raises(ValueError, match="already holds a data set"):
        make_dataset(tmp_path, 6)


def damage(folder, how):
    description = json.loads((folder / "dataset.json").read_text())
    match how:
        case "missing":
            (folder / "dataset.json").unlink()
        case "not json":
            (folder / "dataset.json").write_text("{")
        case "newer":
            (folder / "dataset.json").write_text(json.dumps(description | {"schema_version": 99}))
        case "other count":
            (folder / "dataset.json").write_text(json.dumps(description | {"num_samples": 99}))
        case "no manifest":
            (folder / "manifest.parquet").unlink()
        case "damaged manifest":
            (folder / "manifest.parquet").write_bytes(b"PAR1")
        case "zeros in the manifest":
            content = (folder / "manifest.parquet").read_bytes()
            (folder / "manifest.parquet").write_bytes(content[:100] + bytes(len(content) - 112) + content[-12:])
        case "empty":
            manifest = pq.read_table(folder / "manifest.parquet")
            pq.write_table(manifest.slice(0, 0), folder / "manifest.parquet")
        case "shuffled manifest":
            manifest = pq.read_table(folder / "manifest.parquet")
            pq.write_table(manifest.take(np.arange(len(manifest))[::-1]), folder / "manifest.parquet")
        case "missing file":
            (folder / "data/part-000001.parquet").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"no dataset\.json; give the folder"),
        ("not json", r"dataset\.json is corrupted"),
        ("newer", "schema_version 99 is newer than 3"),
        ("other count", "counts 60 samples, dataset.json 99"),
        ("no manifest", r"manifest\.parquet: is missing"),
        ("damaged manifest", r"manifest\.parquet: is corrupted"),
        ("zeros in the manifest", r"manifest\.parquet: is corrupted"),
        ("empty", "the data set is empty"),
        ("shuffled manifest", "does not list the row groups file by file"),
        ("missing file", r"data/part-000001\.parquet"),
    ],
)
def test_names_what_is_wrong_with_a_data_set_in_one_line(tmp_path, how, message):
    make_dataset(tmp_path, 60)
    damage(tmp_path, how)
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(str(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no samples to write"),
        ([{"sample_id": "a", "image": "not bytes", "captions": 3}], "do not fit DATASET_SCHEMA"),
        ([{"sample_id": "a", "image": b"", "nouns": [], "width": 1, "height": 1}], "captions"),
    ],
)
def test_refuses_to_write_what_breaks_the_contract(tmp_path, samples, message):
    with pytest.raises(ValueError, match=message):
        write_dataset(str(tmp_path), samples)
