import io
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
from itertools import pairwise
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.curation.config import CurateConfig, Source
from pipelines.curation.formats.shard import UnreadableShardError
from pipelines.curation.formats.tar_stream import ByteStream
from pipelines.curation.pieces import Report, curate_piece
from pipelines.curation.raw import check_shards, describe, pieces_of, read_rows, read_shards
from pipelines.curation.steps import sample_steps
from tests.support.faulty_proxy import FaultyProxy
from tests.support.fuzzing import mutated
from tests.support.object_store import ObjectStore
from tests.support.raw_formats import read_all, write_tar, write_tars
from tests.support.raw_shards import good_rows


def sources_of(folder: object) -> list[Source]:
    return [Source(name="x", uri=str(folder))]


def curated(uri: object, work: Path, *, skip: bool = False) -> Report:
    config = CurateConfig(raw=(str(uri),), out="y", skip_unreadable_shards=skip)
    total = Report()
    shards = read_shards(sources_of(uri))
    check_shards(shards, config)
    for piece in pieces_of(shards, 100):
        total.add(curate_piece(piece, config, sample_steps(config, None), str(work)))
    return total


@pytest.fixture(scope="module")
def rows():
    return good_rows(range(150), width=64, height=64)


def test_samples_that_webdataset_wrote_are_read_in_order(tmp_path: Path, rows) -> None:
    folder = write_tars(tmp_path / "tars", rows, 60)
    read = read_all(folder)
    names = ("jpg", "url", "sha256", "key")
    assert [{name: row[name] for name in names} for row in read] == [
        {name: row[name] for name in names} for row in rows
    ]
    assert [row["captions"] for row in read] == [[row["caption"]] for row in rows]
    shards = read_shards(sources_of(folder))
    assert len(pieces_of(shards, 10)) == 3  # a tar is a piece, however few rows are asked for
    (line,) = describe(shards, sources_of(folder))
    assert line.startswith("x: webdataset tars: ") and "(3 files), about 15" in line
    assert max(len(batch) for piece in pieces_of(shards, 10) for batch in read_rows(piece)) <= 64


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar_is_read_with_long_and_odd_names(tmp_path: Path, kind: int) -> None:
    keys = ["../../etc/a", "/root/b", f"{'d' * 90}/{'e' * 90}", "c", "./f", "g.h/i"]
    write_tar(tmp_path / "0.tar", [(f"{key}.{end}", key.encode()) for key in keys for end in ("JPG", "txt")], kind)
    read = read_all(tmp_path / "0.tar")
    assert [(row["key"], row["jpg"], row["captions"]) for row in read] == [(key, key.encode(), [key]) for key in keys]
    assert not (tmp_path / "../../etc").exists() or [path.name for path in tmp_path.iterdir()] == ["0.tar"]


def test_texts_come_from_txt_caption_and_json(tmp_path: Path) -> None:
    def members(key: str, **texts: object):
        yield f"{key}.jpg", b"x"
        for ending, text in texts.items():
            yield f"{key}.{ending}", text if isinstance(text, bytes) else json.dumps(text).encode()

    write_tar(
        tmp_path / "0.tar",
        [
            *members("a", txt=b"a text", json={"caption": "other", "URL": "u", "punsafe": 0.25, "pwatermark": "0.5"}),
            *members("b", json={"captions": ["one", None, "two"], "caption": "one"}, txt=b"one"),
            *members("c", caption=b"of caption"),
            *members("d", json={"text": "of json", "similarity": float("nan"), "license": 4, "NSFW": "NSFW"}),
            *members("e", txt=b"\xff", json=[1]),
            *members("f", json=b"{" * 100_000, txt=b"fine"),
            *members("g", json={"caption": "lone \ud83d", "sha256": "none"}),
            *members("h"),
        ],
    )
    read = {row["key"]: row for row in read_all(tmp_path)}
    assert {key: row["captions"] for key, row in read.items()} == {
        "a": ["a text"],
        "b": ["one", None, "two"],
        "c": ["of caption"],
        "d": ["of json"],
        "e": [None],
        "f": ["fine"],
        "g": [None],
        "h": [None],
    }
    assert [read["a"][name] for name in ("url", "punsafe", "pwatermark")] == ["u", 0.25, 0.5]
    assert [read["d"][name] for name in ("license", "nsfw")] == ["4", "NSFW"] and read["g"]["sha256"] is None
    assert {key for key, row in read.items() if "invalid_json" in row["notes"]} == {"e", "f", "g"}
    named = [row["captions"] for row in read_all(tmp_path, "caption=text")]
    assert named[3] == ["of json"] and named[0] == [None]  # the .txt is not what was asked for


def test_links_second_images_and_cut_groups_are_rows_with_a_reason(tmp_path: Path, rows) -> None:
    images = [row["jpg"] for row in rows]
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes, kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, target
            tar.addfile(member, io.BytesIO(content))

        add("a", b"", tarfile.DIRTYPE)
        add("a/1.txt", b"the rest of a sample of the last tar")
        add("a/2.png", images[1])
        add("a/2.jpg", images[2])
        add("a/2.txt", b"two images")
        add("a/3.jpg", b"", tarfile.SYMTYPE, "/etc/passwd")
        add("a/3.txt", b"a link")
        add("a/4.jpg", b"", tarfile.LNKTYPE, "a/2.jpg")
        add("a/5.cls", b"7")
        add("a/6.jpg", b"")
        add("a/6.txt", b"an empty image")
        add("._a.jpg", b"of macOS")
        add("README", b"no ending")
        add("a/7.jpg", images[7])
    read = {row["key"]: row for row in read_all(path)}
    assert list(read) == [f"a/{number}" for number in range(1, 8)]
    assert {key for key, row in read.items() if row["jpg"]} == {"a/2", "a/7"} and read["a/2"]["jpg"] == images[2]
    report = curated(path, tmp_path / "work")
    assert report.num_rows == 7 and report.drops == {"download_empty": 5, "caption_empty": 1}
    assert report.notes == {"several_images": 1, "link": 2}


def test_nothing_is_unpickled_or_unpacked(tmp_path: Path, rows, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    content = [("a.jpg", rows[0]["jpg"]), ("a.pyd", pickle.dumps(Trap())), ("a.txt", b"a dog")]
    write_tar(tmp_path / "raw/0.tar", content)
    monkeypatch.chdir(tmp_path)
    assert curated(tmp_path / "raw", tmp_path / "work").drops == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "work"]


def test_a_tar_is_read_forward_only(tmp_path: Path, rows, monkeypatch: pytest.MonkeyPatch) -> None:
    big = [{**row, "jpg": row["jpg"] + bytes(200_000)} for row in rows]  # chunks of 4 MB, several of them
    write_tars(tmp_path / "tars", big, 150)
    (piece,) = pieces_of(read_shards(sources_of(tmp_path / "tars")), 100)
    fetched: list[tuple[int, int]] = []
    fetch = ByteStream._fetch

    def spy(stream: ByteStream, num_bytes: int) -> None:
        fetched.append((stream.position, num_bytes))
        fetch(stream, num_bytes)

    monkeypatch.setattr(ByteStream, "_fetch", spy)
    assert sum(len(batch) for batch in read_rows(piece)) == 150
    assert len(fetched) > 3
    assert all(later >= start + size for (start, size), (later, _) in pairwise(fetched))


def test_a_cut_tar_is_refused_before_any_work_or_kept_up_to_the_cut(tmp_path: Path, rows) -> None:
    whole = (write_tars(tmp_path / "whole", rows[:20], 20) / "00000.tar").read_bytes()
    folder = tmp_path / "raw"
    write_tars(folder, rows[20:40], 20)
    path = folder / "00001.tar"
    for size in (0, 100, 512, 5_000, len(whole) // 2, len(whole) // 2 // 512 * 512, 9 * len(whole) // 10):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is cut, or not a tar") as caught:
            curated(folder, tmp_path / f"work-{size}")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        report = curated(folder, tmp_path / f"skipping-{size}", skip=True)
        kept = report.num_rows - report.drops.total()
        assert report.drops == {"shard_unreadable": 1} and 20 <= kept < 40
        assert kept > 20 + 20 * size // len(whole) - 5
        (line,) = report.unreadable
        assert str(path) in line and "\n" not in line


def test_damage_in_the_middle_is_named_and_what_is_before_it_kept(tmp_path: Path, rows) -> None:
    data = bytearray((write_tars(tmp_path / "raw", rows[:40], 40) / "00000.tar").read_bytes())
    middle = data.index(b"000000020.jpg")
    data[middle : middle + 200] = bytes(200)
    (tmp_path / "raw/00000.tar").write_bytes(data)
    with pytest.raises(UnreadableShardError, match=r"00000\.tar: is not a tar, or a corrupted one \(at byte"):
        curated(tmp_path / "raw", tmp_path / "work")
    report = curated(tmp_path / "raw", tmp_path / "skipping", skip=True)
    # Sample 19 counts as unreadable: what is damaged may belong to it, e.g. its .json with the URL.
    assert report.num_rows == 20 and report.drops == {"shard_unreadable": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b" + bytes(range(256)) * 40, "is cut, or not a tar"),
        (b"x" * 10_000 + bytes(1024), "is not a tar, or a corrupted one"),
    ],
)
def test_what_is_no_tar_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        curated(tmp_path, tmp_path / "work")
    assert str(tmp_path / "0.tar") in str(caught.value) and "\n" not in str(caught.value)


def error_of(path: Path) -> str | None:
    try:
        for piece in pieces_of(read_shards(sources_of(path)), 10):
            for _ in read_rows(piece):
                pass
    except ValueError as error:
        return str(error)
    return None


def test_damaged_tars_yield_rows_or_one_error(tmp_path: Path, rows) -> None:
    whole = (write_tars(tmp_path / "whole", rows[:5], 5) / "00000.tar").read_bytes()
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    rng, outcomes = random.Random(0), {"rows": 0, "error": 0}
    path = tmp_path / "0.tar"
    for _ in range(300):
        data = bytearray(whole)
        start = rng.choice(headers)
        header = bytearray((mutated(whole[start : start + 512], rng) + bytes(512))[:512])
        if rng.random() < 0.8:  # a valid sum, so that the rest is believed
            header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
        data[start : start + 512] = header
        path.write_bytes(data)
        error = error_of(path)
        assert error is None or ("\n" not in error and str(path) in error)
        outcomes["rows" if error is None else "error"] += 1
    assert min(outcomes.values()) > 50, outcomes


def test_images_and_texts_apart_are_refused_with_the_remedy(tmp_path: Path) -> None:
    names = [f"{number}.{ending}" for ending in ("jpg", "txt") for number in range(50)]
    write_tar(tmp_path / "0.tar", [(name, b"x") for name in names])
    with pytest.raises(ValueError, match="tar --sort=name") as caught:
        read_shards(sources_of(tmp_path))
    assert "\n" not in str(caught.value)


def test_indexes_beside_tars_say_how_many_there_are(tmp_path: Path, rows) -> None:
    folder = write_tars(tmp_path / "tars", rows, 60)
    (folder / "00000.idx").write_text("v1.2 61\njpg 512 100 0.jpg\n")
    (folder / "00001.idx").write_text("something else")
    found = [shard.rows[0] for shard in read_shards(sources_of(folder))]
    assert found[0] == 61 and 50 < found[1] < 70 and len(read_all(folder)) == 150
    # img2dataset's: what has no statistics is not finished; it also writes parquet without images
    for number in range(3):
        stats = {"count": 70, "successes": 60 if number < 2 else 30}
        (folder / f"0000{number}_stats.json").write_text(json.dumps(stats))
        (folder / f"0000{number}.parquet").write_bytes(b"not looked at")
    assert [shard.rows[0] for shard in read_shards(sources_of(folder))] == [60, 60, 30]
    (folder / "00002_stats.json").unlink()
    with pytest.raises(ValueError, match=r"1 tars have no statistics beside them, first 00002\.tar"):
        read_shards(sources_of(folder))
    assert len(read_all(folder / "{00000..00001}.tar")) == 120


def test_concatenated_tars_are_read_to_their_end(tmp_path: Path, rows) -> None:
    folder = write_tars(tmp_path / "tars", rows[:20], 10)
    (tmp_path / "both.tar").write_bytes(b"".join(path.read_bytes() for path in sorted(folder.iterdir())))
    assert [row["key"] for row in read_all(tmp_path / "both.tar")] == [row["key"] for row in rows[:20]]


@pytest.mark.slow
def test_a_tar_is_read_through_a_faulty_network(
    tmp_path: Path, rows, bucket: str, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = [{**row, "jpg": row["jpg"] + bytes(100_000)} for row in rows]
    content = (write_tars(tmp_path / "tars", big, 150) / "00000.tar").read_bytes()
    storage.write_bytes(f"{bucket}/raw/0.tar", content)
    with FaultyProxy(object_store.port, every=3, seed=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        read = read_all(f"{bucket}/raw")
        assert sum(proxy.faults.values()) >= 3
    assert [row["jpg"] for row in read] == [row["jpg"] for row in big]


COUNT_IN_LITTLE_MEMORY = """
import sys
from pipelines.curation.config import Source
from pipelines.curation.raw import pieces_of, read_rows, read_shards
(piece,) = pieces_of(read_shards([Source(name="x", uri=sys.argv[1])]), 1)
rows = images = 0
for batch in read_rows(piece):
    rows, images = rows + len(batch), images + sum(row["jpg"] is not None for row in batch)
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(rows, images, peak)
"""


@pytest.mark.slow
def test_a_million_empty_members_take_no_memory(tmp_path: Path, rows) -> None:
    write_tar(tmp_path / "0.tar", [("good.jpg", rows[0]["jpg"]), ("good.txt", b"a dog")])
    data = (tmp_path / "0.tar").read_bytes().rstrip(b"\0")
    with open(tmp_path / "0.tar", "wb") as file:
        file.write(data + bytes(-len(data) % 512))
        for number in range(1_000_000):
            file.write(tarfile.TarInfo(f"{number}.jpg").tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(1024))
    command = [sys.executable, "-c", COUNT_IN_LITTLE_MEMORY, str(tmp_path / "0.tar")]
    num_rows, num_images, peak_kb = map(int, subprocess.check_output(command, text=True).split())
    assert (num_rows, num_images) == (1_000_001, 1)
    assert peak_kb < 250_000  # half of it is Python with Arrow
