"""The list of a download, from files to what is fetched, without processes: shards are fetched in this one."""

import json
import shutil
import urllib.request
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli.main import main
from pipelines.dataset.raw_shards import raw_shards, read_record, write_record
from pipelines.download import fetching
from pipelines.download.config import DownloadConfig
from pipelines.download.work_list import UrlList, is_written, read_written
from pipelines.url_lists.reading import list_files
from pipelines.url_lists.rows import LIST_SCHEMA
from tests.support.image_server import image_server

SENTENCES = ("a {} on the grass", "one {} near a road", "somebody painted the {}", "a large {}", "the {} by a wall")


@pytest.fixture(scope="module")
def site():
    with image_server(num_good=8) as site:
        yield site


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    def run(downloader, tasks, num_processes):
        for task in tasks:
            assert downloader(task)[0]

    monkeypatch.setattr(fetching, "run_on_this_machine", run)
    yield
    urllib.request.install_opener(urllib.request.build_opener())


def download(site, url_list, out, *more):
    command = ("download", "--url-list", str(url_list), "--out", str(out), "--allow-hosts", site.host)
    return main([*command, "--rows-per-shard", "3", "--num-threads", "2", "--preflight", "0", *more])


def good_urls(site):
    return [row.url for row in site.rows if row.case == "good"]


def rows_in(out):
    shards = [pq.read_table(shard.uri) for shard in raw_shards(str(out)).shards]
    return sorted((row for shard in shards for row in shard.to_pylist()), key=lambda row: row["row"])


def write_coco(path, urls):
    """Five captions an image, those of an image apart from each other."""
    images = [{"id": number, "coco_url": url, "license": 1} for number, url in enumerate(urls)]
    annotations = [
        {"id": 10 * place + number, "image_id": number, "caption": sentence.format(f"thing {number}")}
        for place, sentence in enumerate(SENTENCES)
        for number in range(len(urls))
    ]
    licenses = [{"id": 1, "url": "http://cc/by"}]
    path.write_text(json.dumps({"licenses": licenses, "images": images, "annotations": annotations}))


def test_an_image_of_coco_is_fetched_once_with_its_five_captions(site, tmp_path, capsys):
    urls, before = good_urls(site), Counter(site.requests)
    write_coco(tmp_path / "captions_train2017.json", urls)
    assert download(site, tmp_path / "captions_train2017.json", tmp_path / "raw", "--preset", "coco", "--json") == 0
    fetched = {f"http://{site.host}{path}": count for path, count in (site.requests - before).items()}
    fetched.pop(f"http://{site.host}/robots.txt", None)  # once in a process
    assert fetched == dict.fromkeys(urls, 1)
    rows = rows_in(tmp_path / "raw")
    assert [row["url"] for row in rows] == urls and {row["license"] for row in rows} == {"http://cc/by"}
    for number, row in enumerate(rows):
        assert row["captions"] == [sentence.format(f"thing {number}") for sentence in SENTENCES]
        assert row["caption"] == row["captions"][0] and row["status"] == "success"
    *lines, result = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "40 rows of the list: 8 URLs with 40 captions",
        "  32 rows have the URL of an earlier one, which has their captions",
    ]
    result = json.loads(result)
    assert (result["rows"], result["urls"], result["captions"], result["succeeded"]) == (40, 8, 40, 8)


def write_folder(folder, urls):
    """Two files that share URLs, with bad rows."""
    folder.mkdir()
    (folder / "a.csv").write_text(
        "url,caption\n" + "".join(f"{url},first\n" for url in urls) + f"{urls[0]},one,too many\n"
    )
    (folder / "b.jsonl").write_text(
        "".join(
            json.dumps({"url": f" {url}", "caption": text}) + "\n" for url in urls[::-1] for text in ("first", "second")
        )
        + '{"url": null}\n'
    )


def test_every_row_is_accounted_for(site, tmp_path, capsys):
    write_folder(tmp_path / "list", good_urls(site))
    assert download(site, tmp_path / "list", tmp_path / "raw", "--max-bad-rows", "0.1", "--json") == 0
    *lines, result = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "26 rows of the list: 8 URLs with 16 captions",
        "  16 rows have the URL of an earlier one, which has their captions",
        "  8 captions left out, which their URL has already, or beyond 1,000 a URL",
        "  2 bad rows left out (url_missing 1, wrong_number_of_fields 1), see rejected.jsonl",
    ]
    assert json.loads(result)["rejected"] == {"url_missing": 1, "wrong_number_of_fields": 1}
    entries = [json.loads(line) for line in (tmp_path / "raw" / "rejected.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["line"], entry["reason"]) for entry in entries] == [
        (str(tmp_path / "list" / "a.csv"), 10, "wrong_number_of_fields"),
        (str(tmp_path / "list" / "b.jsonl"), 17, "url_missing"),
    ]
    assert [row["captions"] for row in rows_in(tmp_path / "raw")] == [["first", "second"]] * 8
    assert not (tmp_path / "raw" / "_list").exists()


def test_too_many_bad_rows_are_refused_before_anything_is_written(site, tmp_path, capsys):
    write_folder(tmp_path / "list", good_urls(site))
    assert download(site, tmp_path / "list", tmp_path / "raw") == 2
    error = capsys.readouterr().err
    assert (
        "a.csv: line 10: 3 fields, expected 2" in error and "2 of 26 rows are bad" in error and error.count("\n") == 1
    )
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("lost", ["_list", "_list/00000.parquet", None])
def test_an_interrupted_download_goes_on_with_the_same_rows(site, tmp_path, lost):
    write_folder(tmp_path / "list", good_urls(site))
    flags = ("--max-bad-rows", "0.1")
    assert download(site, tmp_path / "list", tmp_path / "whole", *flags) == 0
    whole = rows_in(tmp_path / "whole")
    # As a kill leaves it after the first shard.
    out = tmp_path / "raw"
    out.mkdir()
    with UrlList(DownloadConfig(url_list="x", out="y", max_bad_rows=0.1), list_files(str(tmp_path / "list"))) as urls:
        urls.write(str(out))
    for name in ("00000.parquet", "00000_stats.json"):
        shutil.copy(tmp_path / "whole" / name, out / name)
    record = read_record(str(tmp_path / "whole"))
    assert record is not None
    record["passes"] = [{"folder": "", "rows": 8, "finished": False}]
    write_record(str(out), record)
    if lost == "_list":
        shutil.rmtree(out / lost)
    elif lost:
        (out / lost).unlink()
    before = Counter(site.requests)
    assert download(site, tmp_path / "list", out, *flags) == 0
    assert (site.requests - before).total() == 5
    assert [(row["row"], row["url"], row["captions"], row["sha256"]) for row in rows_in(out)] == [
        (row["row"], row["url"], row["captions"], row["sha256"]) for row in whole
    ]


def test_a_download_that_an_earlier_version_began_goes_on_row_by_row(site, tmp_path):
    """It wrote no `captions`, and fetched a URL as often as it was listed."""
    urls = good_urls(site)[:2]
    (tmp_path / "list.csv").write_text("url,caption\n" + "".join(f"{url},{n}\n" for n in range(2) for url in urls))
    out = tmp_path / "raw"
    assert download(site, tmp_path / "list.csv", out) == 0
    record = read_record(str(out))
    assert record is not None
    for path in out.iterdir():
        path.unlink()
    earlier = {name: record["urls"][name] for name in ("list", "digest", "rows", "sample")}
    passes = [{"folder": "", "rows": 4, "finished": False}]
    write_record(str(out), record | {"version": 1, "urls": earlier, "passes": passes})
    assert download(site, tmp_path / "list.csv", out) == 0
    assert [(row["row"], row["url"], row["caption"]) for row in rows_in(out)] == [
        (number, urls[number % 2], str(number // 2)) for number in range(4)
    ]
    # What it left failed can be fetched again.
    table = pq.read_table(out / "00001.parquet").drop_columns(["captions"])
    columns = {"status": ["failed_to_download"], "error_message": ["HTTP Error 503: busy"], "jpg": [None]}
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
    pq.write_table(table, out / "00001.parquet")
    assert download(site, tmp_path / "list.csv", out, "--retry-failed") == 0
    assert rows_in(out)[-1]["status"] == "success"


def test_the_sample_is_spread_over_the_list_and_parts_are_read_in_order(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("url,caption\n" + "".join(f"http://a/{number},c\n" for number in range(1000)))
    config = DownloadConfig(url_list=str(path), out=str(tmp_path / "out"))
    with UrlList(config, [str(path)]) as urls:
        urls.write(config.out)
    sample = [int(url.rpartition("/")[2]) for url in urls.counts.sample]
    assert 32 <= len(sample) <= 64 and sample == list(range(0, 1000, sample[1])) and sample[-1] > 900
    assert is_written(config.out, 1000) and not is_written(config.out, 999)
    table = pa.concat_tables(read_written(config.out))
    assert table.schema == LIST_SCHEMA and table.column("row").to_pylist() == list(range(1000))


def test_the_sample_holds_an_url_once(tmp_path):
    (tmp_path / "list.csv").write_text("url,caption\n" + "".join(f"http://x.org/{n % 4},c {n}\n" for n in range(20)))
    config = DownloadConfig(url_list=str(tmp_path / "list.csv"), out=str(tmp_path / "out"))
    with UrlList(config, list_files(config.url_list)) as urls:
        urls.write(config.out)
        assert urls.counts.sample == [f"http://x.org/{n}" for n in range(4)]
