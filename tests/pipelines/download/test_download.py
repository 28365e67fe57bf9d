"""Downloads from a real server that plants trouble, to disk and to object storage, through kills and retries."""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.cli.main import main
from pipelines.dataset.raw_shards import failed_rows, failure_reason, raw_shards
from pipelines.download.config import DownloadConfig
from tests.support.image_server import image_server

pytestmark = pytest.mark.timeout(900)
SLOW = ("slow", "trickle")  # cases that take their time
NUM_KILLS = 10


@pytest.fixture(scope="module")
def site():
    with image_server(num_good=300) as site:
        yield site


def arguments(site, url_list, out, *more):
    return [
        *("download", "--preset", "cc3m", "--url-list", url_list, "--out", str(out), "--allow-hosts", site.host),
        *("--max-bytes", "2000000", "--timeout", "5", "--max-seconds", "20", "--num-processes", "1"),
        *("--rows-per-shard", "100", "--progress-every-seconds", "0.5", "--json", *more),
    ]  # fmt: skip


def run(*command):
    """Exit code, the JSON object, and all that was printed."""
    printed, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
        code = main(command)
    lines = printed.getvalue().splitlines()
    return code, json.loads(lines[-1]) if code == 0 else {}, printed.getvalue() + complained.getvalue()


def rows_that_count(out):
    """Rows without those that a later pass fetched again, by their position in the list."""
    rows = {}
    for shard in raw_shards(str(out)).shards:
        filesystem, path = storage.resolve(shard.uri)
        table = pq.read_table(path, filesystem=filesystem)
        for row in table.to_pylist():
            if row["row"] not in shard.superseded:
                assert rows.setdefault(row["row"], row) is row, "a row counts twice"
    return [rows[number] for number in sorted(rows)]


def check(site, planted, out):
    """Every row of the list is there once, with the bytes that the server sent or the reason that was planted."""
    found = rows_that_count(out)
    assert [row["row"] for row in found] == list(range(len(planted)))
    for row, expected in zip(found, planted, strict=True):
        assert (row["url"], row["caption"]) == (expected.url, expected.caption)
        reason = "http_503" if expected.case == "unavailable" and not site.available.is_set() else expected.reason
        if expected.case == "unavailable" and site.available.is_set():
            reason = None
        if reason is None:
            body = site.body(expected)
            assert row["status"] == "success" and row["jpg"] == body, expected
            assert row["sha256"] == hashlib.sha256(body).hexdigest()
            assert (row["width"] is None) == (expected.case == "huge_header")
        else:
            assert row["status"] != "success" and row["jpg"] is None, expected
            assert failure_reason(row["error_message"]) == reason, expected


@pytest.fixture(scope="module")
def downloaded(site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("download")
    site.available.clear()
    url_list = site.write_list(folder / "list.tsv")
    code, result, printed = run(*arguments(site, url_list, folder / "raw"))
    assert code == 0, printed
    return url_list, folder / "raw", result, printed


@pytest.mark.slow
def test_every_planted_case_is_there_under_its_reason(site, downloaded):
    _, out, result, printed = downloaded
    check(site, site.rows, out)
    assert result["failures"] == site.reasons
    assert result["rows"] == result["fetched"] == len(site.rows)
    assert result["succeeded"] == sum(row.reason is None for row in site.rows)
    progress = rf"fetched \d+ of {len(site.rows)} URLs  [\d.,]+/s  \d+% arrived  "
    assert (
        "preflight: " in printed and re.search(progress + r"ETA \d", printed) and re.search(progress + "in 0", printed)
    )
    assert all(f"  {reason:16} {count}" in printed for reason, count in site.reasons.items())
    names = {f"{number:05d}{end}" for number in range(4) for end in (".parquet", "_stats.json")}
    assert set(os.listdir(out)) == {"download.json"} | names


@pytest.mark.slow
def test_a_finished_download_is_left_alone(site, downloaded):
    url_list, out, first, _ = downloaded
    before = site.requests.total()
    code, result, _ = run(*arguments(site, url_list, out))
    assert code == 0 and result["fetched"] == 0 and site.requests.total() == before
    assert result["failures"] == first["failures"]


@pytest.mark.slow
def test_another_list_or_configuration_is_refused(site, downloaded, tmp_path):
    url_list, out, _, _ = downloaded
    other = site.write_list(tmp_path / "other.tsv", site.rows[1:])
    for command, message in (
        (arguments(site, other, out), "is not the list that was downloaded"),
        (arguments(site, url_list, out, "--rows-per-shard", "50"), "rows_per_shard=50"),
        (arguments(site, url_list, out, "--respect-opt-out", "False"), "respect_opt_out=False"),
    ):
        code, _, printed = run(*command)
        assert code == 2 and message in printed and "another --out" in printed and printed.count("\n") == 1


@pytest.mark.slow
def test_retry_fetches_what_failed_and_touches_nothing_else(site, downloaded, tmp_path):
    url_list, out, first, _ = downloaded
    shutil.copytree(out, tmp_path / "raw")
    good = {path: count for path, count in site.requests.items() if path.startswith("/good/")}
    files = {path: path.read_bytes() for path in (tmp_path / "raw").glob("0*")}
    site.available.set()
    try:
        code, result, printed = run(*arguments(site, url_list, tmp_path / "raw", "--retry-failed"))
        assert code == 0, printed
        check(site, site.rows, tmp_path / "raw")
    finally:
        site.available.clear()
    expected = dict(site.reasons)
    recovered = expected.pop("http_503")
    assert result["failures"] == expected and result["succeeded"] == first["succeeded"] + recovered
    assert {path: path.read_bytes() for path in (tmp_path / "raw").glob("0*")} == files
    assert {path: count for path, count in site.requests.items() if path.startswith("/good/")} == good
    refused = sum(expected[name] for name in ("opt_out", "robots_txt", "noml", "tdm_reservation", "refused_address"))
    assert result["fetched"] == first["failed"] - refused
    still = [row for table in failed_rows(raw_shards(str(tmp_path / "raw")), ["url"]) for row in table.to_pylist()]
    assert sorted(row["url"] for row in still) == sorted(
        row.url for row in site.rows if row.reason not in (None, "http_503")
    )


@pytest.mark.chaos
def test_killed_again_and_again_it_ends_as_if_it_had_not_been(site, tmp_path):
    site.available.clear()
    rng = random.Random(0)
    planted = [row for row in site.rows if row.case not in SLOW]
    url_list, out = site.write_list(tmp_path / "list.tsv", planted), tmp_path / "raw"
    more = ("--rows-per-shard", "5", "--num-threads", "2", "--preflight", "0")
    command = [sys.executable, "-m", "pipelines.cli", *arguments(site, url_list, out, *more)]
    kept = {}
    for kill in range(NUM_KILLS):
        with (tmp_path / f"log-{kill}").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        num_before, more_shards = num_statistics(out), rng.randrange(3)
        while num_statistics(out) < num_before + more_shards and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.3)
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        assert not psutil.wait_procs(children, timeout=60)[1], "a process outlived the one that started it"
        shards = raw_shards(str(out))
        assert not shards.finished
        now = {shard.uri: pq.read_table(shard.uri, columns=["row", "sha256"]) for shard in shards.shards}
        assert all(now[uri].equals(table) for uri, table in kept.items())
        kept = now
    assert 0 < len(kept) < len(planted) // 5
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["fetched"] == len(planted) - 5 * len(kept)
    check(site, planted, out)
    assert raw_shards(str(out)).finished and not (out / "_tmp").exists()
    assert all(pq.read_table(uri, columns=["row", "sha256"]).equals(table) for uri, table in kept.items())


def num_statistics(out: Path) -> int:
    return len(list(out.glob("*_stats.json")))


@pytest.mark.slow
@pytest.mark.parametrize("distributor", ["multiprocessing", "ray"])
def test_to_object_storage(site, bucket, tmp_path, distributor):
    site.available.clear()
    planted = [row for row in site.rows if row.case not in SLOW][:40]
    url_list, out = f"{bucket}/list.tsv", f"{bucket}/raw"
    storage.write_bytes(url_list, Path(site.write_list(tmp_path / "x.tsv", planted)).read_bytes())
    more = ("--rows-per-shard", "25", "--distributor", distributor)
    code, result, printed = run(*arguments(site, url_list, out, *more))
    assert code == 0 and result["rows"] == len(planted), printed
    check(site, planted, out)
    shards = {f"{number:05d}{end}" for number in range(2) for end in (".parquet", "_stats.json")}
    assert set(storage.list_files(out)) == shards | {"download.json"}
    for secret in (os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]):
        assert secret.encode() not in storage.read_bytes(f"{out}/download.json") and secret not in printed


@pytest.mark.slow
def test_a_missing_bucket_is_said_in_one_line(site, bucket, tmp_path):
    url_list = site.write_list(tmp_path / "list.tsv", site.rows[:1])
    code, _, printed = run(*arguments(site, url_list, "s3://nobucket/raw", "--preflight", "0"))
    assert code > 0 and "there is no bucket 'nobucket'" in printed and printed.count("\n") == 1


@pytest.mark.chaos
def test_a_process_that_is_killed_ends_the_round_and_not_the_waiting(capsys):
    from pipelines.download.fetching import run_on_this_machine

    downloader = dying
    run_on_this_machine(downloader, iter([(0, "a"), (1, "b"), (2, "c")]), 1)  # pyright: ignore[reportArgumentType]
    assert "a process was killed" in capsys.readouterr().out


def dying(task):
    os.kill(os.getpid(), 9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:{port}/good/0.jpg", "refused_address 1; 127.0.0.1"),
        ("http://nowhere.invalid/x.jpg?signature=hidden", "check the machine's DNS"),
        ("https://{host}/good/0.jpg", "check the machine's certificates"),
        ("http://{host}/opt_out/0.jpg", "ask not to be used for training"),
        ("http://{host}/robots_txt/0.jpg", "--respect-robots-txt False overrides them"),
        ("http://{host}/noml/0.jpg", "noml 1; "),
        ("http://{host}/missing/0.jpg", "http_404 1"),
    ],
)
def test_preflight_says_what_is_wrong_before_anything_is_written(site, tmp_path, url, message):
    url = url.format(host=site.host, port=site.host.partition(":")[2])
    (tmp_path / "list.tsv").write_text(f"a dog\t{url}\n")
    command = arguments(site, str(tmp_path / "list.tsv"), tmp_path / "raw")
    if message.startswith("refused"):
        command[command.index("--allow-hosts") + 1] = "127.0.0.1:1"
    code, _, printed = run(*command)
    assert code == 2 and "preflight: all 1 URLs tried failed" in printed and message in printed
    assert "hidden" not in printed and not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_threads": 0}, "num_threads=0 is too small: give at least 1"),
        ({"timeout": 0.0}, "timeout=0.0 is not a length of time"),
        ({"out": "s3://key:secret@bucket/x"}, "out: holds credentials"),
    ],
)
def test_impossible_configurations(flags, message):
    with pytest.raises(ValueError, match=message):
        DownloadConfig(**{"url_list": "x.csv", "out": "raw", **flags})


def test_mistakes_are_found_before_anything_is_written(tmp_path):
    (tmp_path / "list.csv").write_text("link,caption\n")
    (tmp_path / "empty.csv").write_text("url,caption\n")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "00000_stats.json").touch()
    (tmp_path / "good.csv").write_text("url,caption\nhttp://127.0.0.1:1/x,c\n")
    for name, out, message in (
        ("list.csv", "raw", "no column url; it has link, caption"),
        ("empty.csv", "raw", "holds no rows"),
        ("none.csv", "raw", "no such file or folder"),
        ("good.csv", "foreign", "holds raw shards without their record"),
    ):
        code, _, printed = run("download", "--url-list", str(tmp_path / name), "--out", str(tmp_path / out))
        assert code == 2 and message in printed and printed.count("\n") == 1
    assert not (tmp_path / "raw").exists()
