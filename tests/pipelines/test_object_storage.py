"""Storage, data sets and ingest over S3, as a real server speaks it."""

import dataclasses

import numpy as np
import pytest
from pyarrow import fs

from pipelines import storage
from pipelines.config import DataConfig, IngestConfig
from pipelines.experiments import debug
from pipelines.ingest import plan_ingest
from pipelines.inspect_dataset import InspectConfig, inspect_dataset
from pipelines.schema import open_dataset, write_dataset
from pipelines.slices import load_slices
from tests.pipelines.dataset_folder import make_samples
from tests.pipelines.object_store import object_store


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with object_store(tmp_path_factory.mktemp("store")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        server = fs.S3FileSystem(endpoint_override=environment["AWS_ENDPOINT_URL"], allow_bucket_creation=True)
        server.create_dir("bucket")
        yield "s3://bucket"


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
    with pytest.raises(ValueError, match=r"s3://bucket/none: no dataset\.json"):
        open_dataset("s3://bucket/none")
