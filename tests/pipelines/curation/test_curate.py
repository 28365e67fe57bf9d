import dataclasses
import hashlib
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from pyarrow import fs

from pipelines import storage
from pipelines.cli.main import main
from pipelines.curation.config import CurateConfig
from pipelines.curation.curate import curate
from pipelines.dataset.card import read_card
from pipelines.dataset.format import open_dataset, sample_id
from tests.support.dataset_folder import make_dataset, make_samples, write_schema_1
from tests.support.image_files import encoded, png_that_promises
from tests.support.raw_shards import SCHEMA, good_rows, picture, raw_row, write_shards

NUM_CPUS = 2
NUM_GOOD = 300
PLANTED = {
    "download_http_404": 7,
    "download_timeout": 3,
    "download_opt_out": 2,
    "opt_out_list": 4,
    "caption_empty": 2,
    "caption_is_a_name": 2,
    "caption_other_alphabet": 3,
    "caption_boilerplate": 12,
    "image_unidentified": 3,
    "image_damaged": 5,
    "image_animated": 2,
    "image_too_many_pixels": 2,
    "image_too_small": 6,
    "image_aspect_ratio": 1,
    "duplicate": 8,
    "near_duplicate": 9,
}


def planted_rows(rows):
    """Rows to be dropped, as many for each reason as PLANTED says."""
    fresh = iter(range(10_000, 20_000))
    frames = [picture(seed) for seed in range(2)]
    timeout = {"error_message": "<urlopen error timed out>"}
    refused = {"error_message": "Use of image disallowed by X-Robots-Tag directive"}

    def image(**size):
        return encoded(picture(next(fresh), **size), quality=85)

    make = {
        "download_http_404": lambda n: raw_row(next(fresh), None),
        "download_timeout": lambda n: raw_row(next(fresh), None, **timeout),
        "download_opt_out": lambda n: raw_row(next(fresh), None, **refused),
        "opt_out_list": lambda n: raw_row(next(fresh), image(), url=f"https://img.photos.net/{n}.jpg"),
        "caption_empty": lambda n: raw_row(next(fresh), image(), " "),
        "caption_is_a_name": lambda n: raw_row(next(fresh), image(), ("IMG_2034.JPG", "http://a.example/b.jpg")[n]),
        "caption_other_alphabet": lambda n: raw_row(next(fresh), image(), f"собака {n}"),
        "caption_boilerplate": lambda n: raw_row(next(fresh), image(), "click here to buy"),
        "image_unidentified": lambda n: raw_row(next(fresh), b"<html>gone</html>"),
        "image_damaged": lambda n: raw_row(next(fresh), image()[: -300 * (n + 1)]),
        "image_animated": lambda n: raw_row(
            next(fresh), encoded(frames[n], "GIF", save_all=True, append_images=frames)
        ),
        "image_too_many_pixels": lambda n: raw_row(
            next(fresh), png_that_promises(*((9_000, 9_000), (60_000, 60_000))[n])
        ),
        "image_too_small": lambda n: raw_row(next(fresh), image(width=90, height=50)),
        "image_aspect_ratio": lambda n: raw_row(next(fresh), image(width=500, height=80)),
        "duplicate": lambda n: raw_row(next(fresh), rows[n + 40]["jpg"]),
        "near_duplicate": lambda n: raw_row(next(fresh), encoded(picture(n + 20).resize((120, 100)), quality=70)),
    }
    return [function(number) for reason, function in make.items() for number in range(PLANTED[reason])]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two folders: good rows, then in the second also all that is to be dropped."""
    folder = tmp_path_factory.mktemp("raw")
    rows = good_rows(range(NUM_GOOD))
    rows[0]["jpg"] = encoded(picture(0, 600, 400))
    rows[1]["jpg"] = encoded(picture(1), "PNG")
    rows[2]["caption"] = "  A <b>red</b> bus &amp; <PERSON> IMG_2034.jpg "
    rows[3]["caption"] = "click here to buy"
    planted = planted_rows(rows)
    second = [*rows[200:], *planted]
    mixed = [second[index] for index in np.random.default_rng(0).permutation(len(second))]
    return {
        "rows": rows,
        "first": write_shards(folder / "first", rows[:200], 130),
        "second": write_shards(folder / "second", mixed, 90),
        "opt_out": _written(folder / "opt_out.txt", "photos.net\n"),
    }


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def make_config(raw, out, **fields):
    fixed = {"opt_out": str(raw["opt_out"]), "rows_per_piece": 100, "rows_per_group": 16, "groups_per_file": 4}
    folders = (f"one={raw['first']}", str(raw["second"]))
    return CurateConfig(**{"raw": folders, "out": str(out), **fixed, **fields})


@pytest.fixture(scope="module")
def curated(cluster, raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("curated") / "out"
    return curate(make_config(raw, out)), out


@pytest.mark.slow
def test_every_planted_case_is_counted_once_under_its_reason(curated):
    summary, _ = curated
    # The 13th image with the boilerplate caption is one of the good rows.
    expected = PLANTED | {"caption_boilerplate": PLANTED["caption_boilerplate"] + 1}
    assert summary["drops"] == expected
    assert summary["num_samples"] == NUM_GOOD - 1
    assert summary["num_rows"] == NUM_GOOD + sum(PLANTED.values())
    sources = summary["sources"]
    assert sources["one"]["num_samples"] == 199 and sources["one"]["drops"] == {"caption_boilerplate": 1}
    assert sum((Counter(source["drops"]) for source in sources.values()), Counter()) == Counter(expected)
    # Every row has one caption. The 8 duplicates bring theirs along; the 13 images of boilerplate lose theirs.
    assert summary["num_captions_in"] == summary["num_rows"] and summary["num_captions"] == NUM_GOOD - 1 + 8
    caption_drops = Counter(summary["caption_drops"])
    of_captions = ("caption_empty", "caption_is_a_name", "caption_other_alphabet", "caption_boilerplate")
    assert {reason: caption_drops.pop(reason) for reason in of_captions} == {
        name: expected[name] for name in of_captions
    }
    others = sum(expected.values()) - sum(expected[name] for name in of_captions) - expected["duplicate"]
    assert caption_drops == {"image_dropped": others}
    json.dumps(summary)


@pytest.mark.slow
def test_the_data_set_keeps_its_contract(curated, raw):
    summary, out = curated
    info = open_dataset(str(out))
    assert sorted(path.name for path in out.iterdir()) == ["data", "dataset.json", "manifest.parquet"]
    assert {f"data/{path.name}" for path in (out / "data").iterdir()} == set(info.files)
    assert len(info.files) > 3 and info.rows.max() == 16 and info.digest == summary["digest"]
    assert info.metadata["curation"]["drops"] == summary["drops"] and info.metadata["code_version"]
    # `groupvit inspect` finds them.
    assert read_card(info, 1000).drops == {name: source["drops"] for name, source in summary["sources"].items()}
    rows = pa.concat_tables(
        [pq.read_table(out / file) for file in info.files], promote_options="permissive"
    ).to_pylist()
    assert len(rows) == summary["num_samples"] == len({row["sample_id"] for row in rows})
    by_url = {row["url"]: row for row in rows}
    for number, given in enumerate(raw["rows"]):
        if number == 3:
            continue
        row = by_url[given["url"]]
        assert row["sample_id"] == sample_id(row["image"], *row["captions"]) and row["sha256"] == given["sha256"]
        assert len(row["captions"]) == len(row["nouns"]) == (2 if 40 <= number < 48 else 1)
        assert number in (0, 1, 2) or row["captions"][0] == given["caption"]
        assert row["source"] == ("one" if number < 200 else "second")
        image = Image.open(io.BytesIO(row["image"]))
        assert image.size == (row["width"], row["height"]) and image.format == "JPEG"
        if number not in (0, 1):
            assert row["image"] == given["jpg"]
    assert by_url["http://example.org/0.jpg"]["width"] == 384
    cleaned = by_url["http://example.org/2.jpg"]
    assert cleaned["captions"] == ["A red bus & person IMG_2034.jpg"] and cleaned["nouns"] == [["bus", "person"]]
    numbers = [int(row["url"].split("/")[-1].split(".")[0]) for row in rows]
    assert abs(np.corrcoef(numbers, np.arange(len(numbers)))[0, 1]) < 0.2  # shuffled


@pytest.mark.slow
def test_neither_pieces_nor_workers_change_the_data_set_and_asking_again_does_nothing(curated, raw, tmp_path, capsys):
    summary, out = curated
    other = make_config(raw, tmp_path / "other", rows_per_piece=1000, num_workers=1)
    assert curate(other)["digest"] == summary["digest"]
    lines = capsys.readouterr().err.splitlines()
    num_passed = NUM_GOOD + PLANTED["caption_boilerplate"] + PLANTED["duplicate"] + PLANTED["near_duplicate"]
    for what, num_rows, note in (
        ("checked", summary["num_rows"], f"{summary['num_rows'] - num_passed} dropped, duplicates not yet"),
        ("compared and written", num_passed, f"{summary['num_samples']} kept"),
    ):
        last = [line for line in lines if line.startswith(what)][-1]
        assert re.fullmatch(rf"{what} {num_rows} of {num_rows} rows  [\d.,]+/s  {note}  in 0:\d\d:\d\d", last)
    before = (out / "dataset.json").stat()
    assert curate(make_config(raw, out))["digest"] == summary["digest"]
    assert (out / "dataset.json").stat() == before and "nothing to do" in capsys.readouterr().err
    with pytest.raises(ValueError, match="already holds a data set"):
        curate(make_config(raw, out, seed=1))


@pytest.mark.slow
def test_from_and_to_an_object_store(curated, raw, bucket):
    ray.shutdown()  # its processes keep the environment they began with
    for name in ("first", "second"):
        for path in raw[name].iterdir():
            storage.write_bytes(f"{bucket}/{name}/{path.name}", path.read_bytes())
    storage.write_bytes(f"{bucket}/opt_out.txt", raw["opt_out"].read_bytes())
    places = {"first": f"{bucket}/first", "second": f"{bucket}/second", "opt_out": f"{bucket}/opt_out.txt"}
    try:
        summary = curate(make_config(places, f"{bucket}/out"))
    finally:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    assert summary["digest"] == curated[0]["digest"]
    filesystem, path = storage.resolve(f"{bucket}/out")
    left = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    assert not [info.path for info in left if "_curation" in info.path]


@pytest.mark.slow
def test_data_in_which_nothing_is_a_duplicate(cluster, tmp_path):
    """In several files, which get no marks then: Ray knows no columns of a data set without rows."""
    raw = write_shards(tmp_path / "raw", good_rows(range(96)), 48)
    config = CurateConfig(
        raw=(f"one={raw}",),
        out=str(tmp_path / "out"),
        near_duplicate_distance=None,
        max_images_per_caption=None,
        rows_per_piece=24,
        rows_per_group=8,
        groups_per_file=2,
    )
    assert curate(config)["num_samples"] == 96


@pytest.mark.slow
def test_an_unreadable_shard_is_an_error_or_left_out(cluster, raw, tmp_path):
    rows = good_rows(range(40), width=70, height=64)
    folder = write_shards(tmp_path / "raw", rows, 20)
    data = bytearray((folder / "00001.parquet").read_bytes())
    data[4:2000] = bytes(1996)  # the footer stays good
    (folder / "00001.parquet").write_bytes(data)
    (folder / "00002.parquet").write_bytes(b"half")
    config = CurateConfig(raw=(str(folder),), out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"00002\.parquet: is not a parquet file"):
        curate(config)
    assert not (tmp_path / "out").exists()
    (folder / "00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"00001\.parquet: is not a parquet file"):
        curate(config)
    assert not (tmp_path / "out/dataset.json").exists()
    (folder / "00002.parquet").write_bytes(b"half")
    skipping = dataclasses.replace(config, out=str(tmp_path / "skipping"), skip_unreadable_shards=True)
    summary = curate(skipping)
    assert summary["num_rows"] == 40 and summary["num_samples"] == 20
    assert summary["drops"] == {"shard_unreadable": 20}
    assert summary["unreadable_shards"] == [str(folder / "00002.parquet")]


def test_the_plan_is_measured_and_writes_nothing(raw, tmp_path, capsys):
    plan = curate(make_config(raw, tmp_path / "out", plan=True, plan_rows=64, cost_per_core_hour=2.0))
    assert not (tmp_path / "out").exists()
    assert plan["num_rows"] == NUM_GOOD + sum(PLANTED.values()) and plan["num_shards"] == 4
    assert plan["measured"]["num_rows"] >= 56 and plan["core_hours"] > 0
    assert plan["cost"] == pytest.approx(2 * plan["core_hours"])
    shown = capsys.readouterr().out
    assert "caption" in shown and "core-hours" in shown
    json.dumps(plan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--out {tmp}/out", "raw is empty"),
        ("--raw {tmp}/none --out {tmp}/out", "no finished raw shards"),
        ("--raw {tmp}/half --out {tmp}/out", "00000.parquet: is not a parquet file, or a corrupted one"),
        ("--raw {tmp}/half --out {tmp}/out --skip-unreadable-shards", "hold no rows"),
        ("--raw {tmp}/columns --out {tmp}/out", "has no column jpg"),
        ("--raw {tmp}/raw --raw {tmp}/raw --out {tmp}/out", "two folders are named 'raw'"),
        ("--raw {tmp}/raw --out {tmp}/dataset", "already holds a data set"),
        ("--raw {tmp}/raw --out {tmp}/unfinished", "data/ holds files of something unfinished"),
        ("--raw {tmp}/raw --out {tmp}/begun", "was started with seed=1 instead of 0"),
        ("--raw {tmp}/raw --out {tmp}/out --min-side 0", "min_side=0 is too small: give at least 1"),
        ("--raw {tmp}/raw --out {tmp}/out --max-words 0", "max_words=0 is too small"),
        ("--raw {tmp}/raw --out {tmp}/out --opt-out {tmp}/none", "opt_out={tmp}/none: cannot be read"),
        ("--raw {tmp}/raw --out {tmp}/out --tagger none_such", "tagger: no spaCy pipeline 'none_such' is installed"),
        ("--raw {tmp}/raw --out {tmp}/out --min-sied 3", "did you mean --min-side?"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, message, tmp_path, capsys):
    write_shards(tmp_path / "raw", good_rows(range(3)), 3)
    (tmp_path / "half").mkdir()
    (tmp_path / "half/00000.parquet").write_bytes((tmp_path / "raw/00000.parquet").read_bytes()[:-100])
    write_shards(tmp_path / "columns", [{"url": "x"}], 1, pa.schema([SCHEMA.field("url")]))
    make_dataset(tmp_path / "dataset", 5)
    make_dataset(tmp_path / "unfinished", 5)
    (tmp_path / "unfinished/dataset.json").unlink()
    (tmp_path / "begun/_curation").mkdir(parents=True)
    _begin(tmp_path)
    assert main(["curate", *arguments.format(tmp=tmp_path).split()]) == 2
    shown = capsys.readouterr().err
    assert message.format(tmp=tmp_path) in shown
    assert shown.startswith("groupvit: error: ") and shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def _begin(tmp_path):
    """A curation begun under another seed."""
    from pipelines.curation.config import fixes_the_result

    config = CurateConfig(raw=(str(tmp_path / "raw"),), out="x", seed=1)
    terms = {"config": fixes_the_result(config), "opt_out": None, "input": {}}
    (tmp_path / "begun/_curation/terms.json").write_text(json.dumps(terms))


def test_a_data_set_that_the_same_command_made_in_schema_1_is_left_as_it_is(tmp_path, monkeypatch, capsys):
    raw = write_shards(tmp_path / "raw", good_rows(range(3)), 3)
    monkeypatch.setattr("pipelines.curation.curate._curate", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        curate(CurateConfig(raw=(str(raw),), out=str(tmp_path / "begun")))
    terms = json.loads((tmp_path / "begun/_curation/terms.json").read_text())
    del terms["config"]["captions"], terms["config"]["max_captions_per_image"]
    rows = [{**row, "caption": row["captions"][0], "nouns": row["nouns"][0]} for row in make_samples(3)]
    write_schema_1(tmp_path / "old", rows, rows_per_group=4)
    path = tmp_path / "old/dataset.json"
    old_hash = hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()[:32]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"terms_hash": old_hash, "curation": {"num_samples": 3}}))
    assert curate(CurateConfig(raw=(str(raw),), out=str(tmp_path / "old")))["num_samples"] == 3
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(ValueError, match="already holds a data set"):
        curate(CurateConfig(raw=(str(raw),), out=str(tmp_path / "old"), seed=1))


@pytest.mark.slow
def test_missing_buckets_and_wrong_credentials_are_one_line(raw, bucket, monkeypatch, capsys):
    monkeypatch.setattr(storage, "_FIRST_DELAY", 0.01)  # trying again is tested elsewhere
    for arguments in (
        ["--raw", "s3://none/raw", "--out", "x"],
        ["--raw", str(raw["first"]), "--out", "s3://none/x"],
    ):
        assert main(["curate", *arguments]) > 0
        shown = capsys.readouterr().err
        assert "there is no bucket 'none'" in shown and shown.count("\n") == 1
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert main(["curate", "--raw", f"{bucket}/raw", "--out", "x"]) > 0
    assert "AWS_SECRET_ACCESS_KEY" in capsys.readouterr().err
