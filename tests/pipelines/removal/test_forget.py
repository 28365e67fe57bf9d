"""`groupvit forget`: the new data set, refusals, and how it goes on. test_sightings.py has what runs have seen."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.cli.main import main
from pipelines.dataset.format import DatasetInfo, open_dataset, write_dataset
from pipelines.dataset.verification import verify
from tests.support.dataset_folder import make_recaptioned, make_samples, write_schema_1

NUM_SAMPLES = 40


def rows() -> list[dict[str, Any]]:
    """Samples of several hosts; every third one has no sha256."""
    found = []
    for index, row in enumerate(make_samples(NUM_SAMPLES)):
        host = ("a.example", "b.a.example", "other.example", "xn--mnchen-3ya.example")[index % 4]
        sha256 = None if index % 3 == 0 else hashlib.sha256(b"original %d" % index).hexdigest()
        found.append({**row, "url": f"https://{host}/{index}.jpg", "sha256": sha256})
    return found


@pytest.fixture
def data(tmp_path: Path) -> DatasetInfo:
    """Four files: row groups of 4, three a file, and a last one of a single group."""
    drops = {"noise": {"caption_empty": 7}}
    return write_dataset(str(tmp_path / "data"), rows(), rows_per_group=4, groups_per_file=3, metadata={"drops": drops})


def forget(*words: str, json_from: pytest.CaptureFixture[str] | None = None) -> Any:
    assert main(["forget", *words, "--json"]) == 0
    return None if json_from is None else json.loads(json_from.readouterr().out.splitlines()[-1])


def ids(info: DatasetInfo) -> list[str]:
    tables = [pq.read_table(f"{info.uri}/{name}", columns=["sample_id"]) for name in info.files]
    return [text for table in tables for text in table.column("sample_id").to_pylist()]


def test_the_new_data_set_has_the_others_in_their_order(
    data: DatasetInfo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, samples = tmp_path / "out", rows()
    (tmp_path / "urls.txt").write_text(
        f"# a wish\n\nhttp://A.example/0.jpg \n{samples[5]['url']}#top\nhttp://none.example/x\n"
    )
    hashes = tmp_path / "hashes.csv"
    stored = hashlib.sha256(samples[3]["image"]).hexdigest().upper()
    hashes.write_text(f"who,sha256\nme,{samples[4]['sha256']}\n\nyou,{stored}\n")
    flags = ("--data", data.uri, "--out", str(out), "--urls", str(tmp_path / "urls.txt"), "--sha256", str(hashes))
    result = forget(*flags, json_from=capsys)

    info = open_dataset(str(out))
    gone = {0, 3, 4, 5}
    assert ids(info) == [row["sample_id"] for index, row in enumerate(samples) if index not in gone]
    assert verify(info).num_problems == 0 and not verify(info).orphans
    # 0 to 11 were the first file: 8 are left, in groups of 4. The other files are the same bytes.
    assert info.rows.tolist() == [4] * 9
    for name in data.files[1:]:
        assert Path(out, name).read_bytes() == Path(data.uri, name).read_bytes()
    kept, before = (pq.read_table(f"{uri}/{name}") for uri, name in ((out, info.files[0]), (data.uri, data.files[0])))
    assert kept.equals(before.take([index for index in range(12) if index not in gone]))

    assert info.digest != data.digest
    assert info.metadata["drops"] == {"noise": {"caption_empty": 7, "forgotten": 4}}
    [made] = info.metadata["made_by_forget"]
    assert (made["digest"], made["num_samples"], made["num_removed"]) == (data.digest, NUM_SAMPLES, 4)
    assert open_dataset(data.uri).digest == data.digest
    assert sorted(path.name for path in out.iterdir()) == ["data", "dataset.json", "forget.json", "manifest.parquet"]

    report = json.loads((out / "forget.json").read_text())
    assert report["out"] == result["out"] == {"uri": str(out), "digest": info.digest, "num_samples": 36}
    assert [(entry["kind"], entry["num_samples"]) for entry in report["entries"]] == [
        *(("url", 1), ("url", 1), ("url", 0), ("sha256", 1), ("sha256", 1)),
    ]
    assert [sample["sample_id"] for sample in report["samples"]] == [
        samples[index]["sample_id"] for index in sorted(gone)
    ]
    assert result["num_removed"] == 4 and result["num_entries_without_samples"] == 1
    assert result["num_compared_by_stored_image"] == 14
    assert main(["inspect", str(out), "--verify", "--out", str(tmp_path / "page.html")]) == 0


@pytest.mark.parametrize(
    ("host", "gone"),
    [
        ("A.example", [index for index in range(NUM_SAMPLES) if index % 4 in (0, 1)]),
        ("b.a.example", range(1, NUM_SAMPLES, 4)),
        ("münchen.example", range(3, NUM_SAMPLES, 4)),
    ],
)
def test_a_host_has_its_subdomains(
    data: DatasetInfo, tmp_path: Path, host: str, gone: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    result = forget("--data", data.uri, "--out", str(tmp_path / "out"), "--hosts", host, json_from=capsys)
    left = [row["sample_id"] for index, row in enumerate(rows()) if index not in gone]
    assert ids(open_dataset(str(tmp_path / "out"))) == left
    assert result["num_removed"] == len(gone) == NUM_SAMPLES - len(left)


def test_a_file_that_loses_everything_is_not_there(data: DatasetInfo, tmp_path: Path) -> None:
    forget("--data", data.uri, "--out", str(tmp_path / "out"), "--urls", *(row["url"] for row in rows()[12:24]))
    info = open_dataset(str(tmp_path / "out"))
    assert info.files == (data.files[0], *data.files[2:]) and info.num_samples == 28
    assert verify(info).num_problems == 0


def test_again_from_what_was_made(data: DatasetInfo, tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    forget("--data", data.uri, "--out", first, "--urls", rows()[0]["url"])
    forget("--data", first, "--out", second, "--urls", rows()[1]["url"])
    info = open_dataset(second)
    assert [made["digest"] for made in info.metadata["made_by_forget"]] == [data.digest, open_dataset(first).digest]
    assert info.metadata["drops"]["noise"]["forgotten"] == 2 and info.num_samples == NUM_SAMPLES - 2


def test_a_report_alone(data: DatasetInfo, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    forget("--data", data.uri, "--report", str(report), "--hosts", "other.example")
    content = json.loads(report.read_text())
    assert content["out"] is None and len(content["samples"]) == content["num_removed"] == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "report.json"]


def test_it_goes_on_where_it_was_stopped(
    data: DatasetInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, write = tmp_path / "out", storage.write_bytes
    flags = ["forget", "--data", data.uri, "--out", str(out), "--hosts", "other.example"]

    def write_until_full(uri: str, content: bytes | memoryview) -> None:
        if uri.endswith(("part-000002.parquet", "dataset.json")):
            raise OSError(28, "No space left on device", uri)
        write(uri, content)

    monkeypatch.setattr(storage, "write_bytes", write_until_full)
    assert main(flags) == 1 and "No space left" in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"no dataset\.json"):
        open_dataset(str(out))
    assert main([*flags[:-1], "b.a.example"]) == 2
    assert "was begun for another data set or other samples" in capsys.readouterr().err
    times = {path: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    assert len(times) >= 2
    assert main(flags) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert not (out / "_forget").exists()

    whole = tmp_path / "whole"
    assert main(["forget", "--data", data.uri, "--out", str(whole), "--hosts", "other.example"]) == 0
    assert open_dataset(str(out)).digest == open_dataset(str(whole)).digest
    assert verify(open_dataset(str(out))).num_problems == 0


def test_data_sets_of_schema_1_are_written_in_schema_2(tmp_path: Path) -> None:
    samples = [
        {**{name: row[name] for name in ("sample_id", "image", "width", "height", "source", "url", "sha256")}}
        | {"caption": row["captions"][0], "nouns": row["nouns"][0]}
        for row in rows()
    ]
    data = write_schema_1(tmp_path / "data", samples, rows_per_group=7)
    forget("--data", str(data), "--out", str(tmp_path / "out"), "--urls", samples[9]["url"])
    info = open_dataset(str(tmp_path / "out"))
    assert info.metadata["schema_version"] == 2 and verify(info).num_problems == 0
    assert ids(info) == [row["sample_id"] for row in samples if row["url"] != samples[9]["url"]]


def test_in_object_storage(data: DatasetInfo, tmp_path: Path, bucket: str) -> None:
    for name in ("dataset.json", "manifest.parquet", *data.files):
        storage.copy(f"{data.uri}/{name}", f"{bucket}/data/{name}")
    storage.write_bytes(f"{bucket}/hosts.txt", b"other.example\n")
    flags = ("--data", f"{bucket}/data", "--hosts", f"{bucket}/hosts.txt")
    forget(*flags, "--out", f"{bucket}/out")
    forget(*flags, "--out", str(tmp_path / "out"))
    info = open_dataset(f"{bucket}/out")
    assert info.digest == open_dataset(str(tmp_path / "out")).digest and verify(info).num_problems == 0
    assert storage.list_folders(f"{bucket}/out") == ["data"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "urls, hosts and sha256 are empty: give what to remove"),
        ("--hosts a.example --out {tmp}/data", "is the data set itself"),
        ("--hosts a.example --out {tmp}/data/", "is the data set itself"),
        ("--hosts a.example --out {tmp}/taken", "already holds a data set"),
        ("--hosts a.example --out {tmp}/part", "data/ holds files of something unfinished"),
        ("--hosts a.example --out {tmp}/file/below", "out={tmp}/file/below cannot be written"),
        ("--hosts a.example --report {tmp}/x.txt", "give a file name that ends in .json"),
        ("--hosts a.example --runs {tmp}/data", "holds no run"),
        ("--hosts nowhere.example", "none of the 1 entries matches"),
        ("--hosts nowhere.example", "given are e.g. 'nowhere.example'; the data set has e.g. 'https://a.example/0.jpg'"),
        ("--hosts example", "nothing is left for a new data set"),
        ("--hosts https://a.example/", "'https://a.example/' is not a host"),
        ("--urls a.example", "'a.example' is not the URL of an image"),
        ("--urls http://[::1/x", "'http://[::1/x' is not the URL of an image"),
        ("--sha256 1234", "'1234' is not a sha256: give 64 hexadecimal digits"),
        ("--urls {tmp}/none.txt", "urls={tmp}/none.txt: there is no such file"),
        ("--sha256 {tmp}/bad.txt", "bad.txt line 3: 'nonsense' is not a sha256"),
        ("--hosts {tmp}/latin.txt", "latin.txt: is not UTF-8 text"),
        ("--hosts {tmp}/empty.txt", "name only empty lists"),
        ("--urls {tmp}/two.csv", "two.csv: has 2 columns and none is named url"),
        ("--hosts {tmp}/short.csv", "short.csv line 3: has 1 columns, and host is number 2"),
        ("--urls {tmp}/broken.csv", "broken.csv: is not a csv"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_nothing_is_written(
    data: DatasetInfo, tmp_path: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in {
        "bad.txt": b"# hashes\n\nnonsense\n",
        "latin.txt": "m\xfcnchen.example\n".encode("latin-1"),
        "empty.txt": b"# nothing\n",
        "two.csv": b"where,what\nhttp://a.example/0.jpg,x\n",
        "short.csv": b"number,host\n1,a.example\n2\n",
        "broken.csv": b'url\n"http://a.example/0.jpg" x\n',
        "file": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
    write_dataset(str(tmp_path / "taken"), make_samples(3))
    (tmp_path / "part/data").mkdir(parents=True)
    (tmp_path / "part/data/part-000000.parquet").touch()
    before = sorted(tmp_path.rglob("*"))
    words = flags.format(tmp=tmp_path).split()
    out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
    assert main(["forget", "--data", data.uri, *words, *out]) == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("groupvit: error: ") and message.format(tmp=tmp_path) in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_file_is_named(data: DatasetInfo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(data.uri, data.files[1])
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["forget", "--data", data.uri, "--out", str(tmp_path / "out"), "--hosts", "other.example"]) == 2
    assert f"{file}: is corrupted or incomplete" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_recaptions_stay_with_the_samples_that_are_left(tmp_path: Path) -> None:
    data = make_recaptioned(tmp_path / "data", 24, rows_per_group=4)
    before = [row for name in data.files for row in pq.read_table(f"{data.uri}/{name}").to_pylist()]
    stored = hashlib.sha256(before[1]["image"]).hexdigest()
    forget("--data", data.uri, "--out", str(tmp_path / "out"), "--sha256", stored)
    info = open_dataset(str(tmp_path / "out"))
    after = [row for name in info.files for row in pq.read_table(f"{info.uri}/{name}").to_pylist()]
    assert after == [row for index, row in enumerate(before) if index != 1]
    assert (info.metadata["schema_version"], info.caption_origins) == (3, ("original", "llava"))
    assert verify(info).problems == () and info.digest != data.digest
    assert Path(info.uri, info.files[1]).read_bytes() == Path(data.uri, data.files[1]).read_bytes()
