"""The same content, in every format: the same samples, counts and data set."""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from pipelines import storage
from pipelines.cli.main import main
from pipelines.curation.config import CurateConfig, Source, fixes_the_result
from pipelines.curation.curate import curate
from pipelines.curation.pieces import Report, curate_piece, rest_of_record
from pipelines.curation.raw import describe, pieces_of, read_shards
from pipelines.curation.steps import sample_steps
from pipelines.dataset.format import open_dataset
from pipelines.training.pretrain import pretrain
from tests.support.image_files import encoded
from tests.support.raw_formats import write_folder, write_hugging_face, write_img2dataset, write_tars
from tests.support.raw_shards import good_rows, picture, raw_row
from tests.support.small_run import consumed, make_config

NUM_CPUS = 2
NUM_GOOD = 130
DROPS = {
    "image_damaged": 2,
    "image_unidentified": 1,
    "image_too_small": 1,
    "caption_empty": 2,
    "caption_other_alphabet": 1,
}
FORMATS = ("img2dataset", "img2dataset_tars", "webdataset", "hugging_face", "csv", "tsv", "jsonl")


def make_rows():
    rows = good_rows(range(NUM_GOOD))
    rows[7] = raw_row(7, encoded(picture(7, 600, 400), quality=85))  # is shrunk and encoded again
    rows[8] = raw_row(8, encoded(picture(8), "PNG"))
    rows[9]["caption"] = "A <b>red</b> bus &amp; a “süß” dog"
    bad = [encoded(picture(seed), quality=85) for seed in range(500, 507)]
    rows += [raw_row(500, bad[0][:-300]), raw_row(501, bad[1][:-600]), raw_row(502, b"<html>gone</html>")]
    rows += [raw_row(503, encoded(picture(503, 90, 50))), raw_row(504, bad[4], " "), raw_row(505, bad[5], "")]
    return [*rows, raw_row(506, bad[6], "собака на траве")]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, rows = tmp_path_factory.mktemp("raw"), make_rows()
    return {
        "img2dataset": write_img2dataset(folder / "img2dataset", rows, 50, "parquet"),
        "img2dataset_tars": write_img2dataset(folder / "img2dataset_tars", rows, 60, "webdataset"),
        "webdataset": write_tars(folder / "webdataset", rows, 45),
        "hugging_face": write_hugging_face(folder / "hugging_face", rows, 70),
        **{ending: write_folder(folder / ending, rows, ending) for ending in ("csv", "tsv", "jsonl")},
    }


def samples_of(uri: Path, work: Path) -> tuple[Report, dict[str, dict]]:
    """The report of the steps, and the samples that passed, by id. Without Ray."""
    config = CurateConfig(raw=(str(uri),), out="y")
    total, samples = Report(), {}
    for piece in pieces_of(read_shards([Source(name="x", uri=str(uri))]), 64):
        total.add(curate_piece(piece, config, sample_steps(config, None), str(work)))
        index = pq.read_table(work / f"index/{piece.number:08d}.parquet").to_pylist()
        for entry in index:
            record = (work / f"records/{piece.number:08d}-{entry['run']:04d}").read_bytes()
            start, end = entry["offset"] + entry["image_bytes"], entry["offset"] + entry["bytes"]
            sample = rest_of_record(record[start:end])
            samples[sample["sample_id"]] = sample
    return total, samples


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_content_has_the_same_sample_ids_and_drops(name: str, raw, tmp_path: Path) -> None:
    expected, of_img2dataset = samples_of(raw["img2dataset"], tmp_path / "expected")
    report, samples = samples_of(raw[name], tmp_path / "work")
    assert report.drops == expected.drops == DROPS and report.num_rows == NUM_GOOD + sum(DROPS.values())
    assert report.caption_drops == expected.caption_drops and not report.notes
    assert len(samples) == NUM_GOOD and samples == of_img2dataset  # URLs and hashes of the files, too


def test_named_columns_fix_the_result_and_none_are_as_before_there_was_the_flag() -> None:
    assert "columns" not in fixes_the_result(CurateConfig(raw=("x",), out="y"))
    assert fixes_the_result(CurateConfig(raw=("x",), out="y", columns=("caption=a",)))["columns"] == ["caption=a"]


@pytest.fixture(scope="module")
def curated(cluster: None, raw, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("curated") / "img2dataset"
    return curate(config_of(raw["img2dataset"], out)), out


def config_of(uri: object, out: object, num_workers: int = 2) -> CurateConfig:
    return CurateConfig(
        raw=(f"x={uri}",),
        out=str(out),
        num_workers=num_workers,
        rows_per_piece=50,
        rows_per_group=16,
        groups_per_file=3,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_workers"), [("webdataset", 2), ("webdataset", 1), ("hugging_face", 2), ("csv", 2)]
)
def test_the_data_set_is_the_same_from_any_format(name, num_workers, curated, raw, tmp_path: Path, capsys) -> None:
    summary, out = curated
    other = curate(config_of(raw[name], tmp_path / "out", num_workers))
    assert other["digest"] == summary["digest"] and other["drops"] == summary["drops"] == DROPS
    source = Source(name="x", uri=str(raw[name]))
    assert describe(read_shards([source]), [source])[0] in capsys.readouterr().err.splitlines()
    for file, another in zip(open_dataset(str(out)).files, open_dataset(str(tmp_path / "out")).files, strict=True):
        assert pq.read_table(out / file).equals(pq.read_table(tmp_path / "out" / another))


@pytest.mark.slow
def test_every_format_is_read_from_an_object_store(curated, raw, bucket: str, tmp_path: Path) -> None:
    ray.shutdown()  # its processes keep the environment they began with
    for name in ("webdataset", "hugging_face", "jsonl"):
        for path in raw[name].rglob("*.*"):
            storage.write_bytes(f"{bucket}/{path.relative_to(raw[name].parent)}", path.read_bytes())
    uris = [f"a={bucket}/webdataset/{{00000..00003}}.tar", f"b={bucket}/hugging_face", f"c={bucket}/jsonl"]
    try:
        summary = curate(CurateConfig(raw=tuple(uris), out=str(tmp_path / "out"), rows_per_group=16, groups_per_file=3))
    finally:
        ray.init(address="local", num_cpus=NUM_CPUS, include_dashboard=False, log_to_driver=False)
    assert summary["sources"]["a"]["num_samples"] == NUM_GOOD and summary["sources"]["a"]["drops"] == DROPS
    for name in ("b", "c"):
        assert summary["sources"][name]["drops"] == {**DROPS, "duplicate": NUM_GOOD}


@pytest.mark.slow
def test_a_cut_tar_is_reported_and_nothing_before_the_cut_is_lost(curated, raw, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(raw["webdataset"], folder)
    path = folder / "00001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    command = ["curate", "--raw", f"x={folder}", "--out", str(tmp_path / "out"), "--json"]
    assert main(command) == 2
    shown = capsys.readouterr().err
    assert f"raw={path}: is cut, or not a tar" in shown and shown.count("\n") == 1 and not (tmp_path / "out").exists()
    assert main([*command, "--skip-unreadable-shards"]) == 0
    shown = capsys.readouterr().out
    summary = json.loads(shown.splitlines()[-1])
    assert summary["drops"]["shard_unreadable"] == 1 and NUM_GOOD - 26 < summary["num_samples"] < NUM_GOOD - 18
    [line] = summary["read_in_part"]
    assert str(path) in line and f"read in part: {line}" in shown and summary["unreadable_shards"] == []


@pytest.mark.slow
def test_an_interrupted_curation_of_tars_goes_on_where_it_stopped(curated, raw, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "raw"
    shutil.copytree(raw["webdataset"], folder)
    path = folder / "00003.tar"
    whole, times = path.read_bytes(), path.stat()
    path.write_bytes(whole[:5120] + b"x" * 512 + whole[5632:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same input as before, as it will be again
    with pytest.raises(ValueError, match=r"00003\.tar: is not a tar, or a corrupted one \(at byte"):
        curate(config_of(folder, tmp_path / "out", num_workers=1))
    done = [path.stem for path in (tmp_path / "out/_curation/index").iterdir()]
    assert done and "00000003" not in done
    path.write_bytes(whole)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    capsys.readouterr()
    assert curate(config_of(folder, tmp_path / "out"))["digest"] == curated[0]["digest"]
    assert f"{len(done)} of 4 pieces are done already" in capsys.readouterr().err


@pytest.mark.slow
def test_tars_are_trained_on_for_twenty_steps(curated, raw, tmp_path: Path) -> None:
    curate(config_of(raw["webdataset"], tmp_path / "data"))
    ids = {}
    for name, data in (("tars", tmp_path / "data"), ("parquet", curated[1])):
        pretrain(make_config(str(data), tmp_path / "runs", name, num_workers=1, num_steps=20))
        ids[name] = consumed(tmp_path / "runs", name)
    assert len(ids["tars"]) == 20 * 4 and ids["tars"] == ids["parquet"]
