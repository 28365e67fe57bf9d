"""Storage, data sets and ingest over S3, as a real server speaks it."""

import dataclasses

import numpy as np
import pytest

from pipelines import storage
from pipelines.dataset.format import open_dataset, write_dataset
from pipelines.dataset.inspect import InspectConfig, inspect_dataset
from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import DataConfig, IngestConfig
from pipelines.ingest.plan import plan_ingest
from pipelines.ingest.slices import load_slices
from tests.support.dataset_folder import make_samples


def test_reads_and_writes_objects(bucket):
    uri = storage.join(bucket, "folder", "x")
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    assert storage.list_files(storage.join(bucket, "folder")) == ["x"]
    assert storage.list_files(storage.join(bucket, "nothing")) == []
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(bucket, "missing"))


def test_a_data_set_gives_the_slices_it_gives_from_disk(bucket, tmp_path):
    infos = [
        write_dataset(uri, make_samples(40), rows_per_group=8, groups_per_file=2)
        for uri in (storage.join(bucket, "dataset"), str(tmp_path / "dataset"))
    ]
    assert infos[0].digest == infos[1].digest
    config = dataclasses.replace(debug(), ingest=IngestConfig(slice_size=8, window_size=16))
    remote, local = (
        load_slices(plan_ingest(dataclasses.replace(config, data=DataConfig(sources=(info.uri,)))), 2, 4)
        for info in infos
    )
    for piece, other in zip(remote, local, strict=True):
        assert all(np.array_equal(piece[name], other[name]) for name in other)


def test_a_data_set_is_inspected_as_on_disk(bucket, tmp_path):
    uris = [storage.join(bucket, "inspected"), str(tmp_path / "inspected")]
    pages: list[bytes] = []
    for uri in uris:
        write_dataset(uri, make_samples(40), rows_per_group=8, groups_per_file=2)
        summary = inspect_dataset(InspectConfig(dataset=uri, out=storage.join(uri, "page.html"), verify=True))
        assert summary["num_samples_verified"] == 40 and summary["charts"]["source"] == {"noise": 40}
        pages.append(storage.read_bytes(summary["page"]).replace(uri.encode(), b""))
    assert pages[0] == pages[1]
    name = storage.join(uris[0], open_dataset(uris[0]).files[1])
    storage.write_bytes(name, storage.read_bytes(name)[:-1000])
    with pytest.raises(ValueError, match="1 problems, see above"):
        inspect_dataset(InspectConfig(dataset=uris[0], out=str(tmp_path / "page.html"), verify=True))


def test_a_missing_data_set_is_named(bucket):
    with pytest.raises(ValueError, match=r"s3://bucket-\w+/none: no dataset\.json"):
        open_dataset(f"{bucket}/none")


def test_a_missing_bucket_is_named(bucket):
    with pytest.raises(storage.StorageError, match="s3://elsewhere/data: there is no bucket 'elsewhere'"):
        open_dataset("s3://elsewhere/data")
    with pytest.raises(storage.StorageError, match="s3://elsewhere/x: there is no bucket 'elsewhere'"):
        storage.write_bytes("s3://elsewhere/x", b"")


def test_wrong_credentials_are_named_at_once(bucket, monkeypatch):
    storage.write_bytes(f"{bucket}/there", b"")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setattr(storage, "_seen_to_work", set())
    with pytest.raises(storage.StorageError, match="there: access is refused; check AWS_ACCESS_KEY_ID"):
        storage.read_bytes(f"{bucket}/there")


def test_a_server_that_does_not_answer_is_named(bucket, monkeypatch):
    monkeypatch.setattr(storage, "_NUM_ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(storage.StorageError, match=r"http://127\.0\.0\.1:9 fails .* check AWS_ENDPOINT_URL"):
        storage.read_bytes(f"{bucket}/x")


def test_clients_are_shared(bucket):
    assert storage.resolve(f"{bucket}/a")[0] is storage.resolve(f"{bucket}/b")[0]
