"""Downloads the images of a URL list into raw shards (pipelines/dataset/raw_shards.py describes their layout).

groupvit download --preset cc3m --url-list Train_GCC-training.tsv --out s3://bucket/cc3m-raw

The same command resumes a download, however it was stopped. Proxies, DNS and certificates are those of the machine:
HTTP_PROXY, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE. With Ray, they are those of the cluster's machines, which must be able
to reach OUT.
"""

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.dataset.raw_shards import (
    LIST_FOLDER,
    RECORD_VERSION,
    TEMPORARY,
    failed_rows,
    failure_reason,
    has_shards,
    raw_shards,
    read_record,
    read_stats,
    write_record,
)
from pipelines.download.config import DownloadConfig
from pipelines.download.preflight import preflight
from pipelines.download.progress import showing_progress
from pipelines.download.work_list import UrlList, describe, is_written, read_by_rows, read_written
from pipelines.local.folder_lock import only_one
from pipelines.local.writable import check_writable
from pipelines.provenance import code_version, redact
from pipelines.url_lists import reading as url_lists

OPT_OUT_DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
NOT_TO_RETRY = frozenset({"opt_out", "robots_txt", "noml", "tdm_reservation", "refused_address", "invalid_url"})
"""Failure reasons that are never retried: the site or this downloader would refuse the URL again."""
_NUM_ATTEMPTS = 3  # at writing all shards of a pass


def download(config: DownloadConfig) -> dict[str, Any]:
    """Fetches the rows that have not been fetched yet; prints and returns counts.

    Raises:
        ValueError: The user's input is invalid. Raised before anything is written.
        OSError: Some shards could not be written.
    """
    start = time.perf_counter()
    out = storage.absolute(config.out)
    files = url_lists.list_files(storage.absolute(config.url_list))
    record = _open_record(config, out, files)
    last = record["passes"][-1]
    interrupted, num_fetched = not last["finished"], 0
    with only_one(out, "out") if interrupted or config.retry_failed else nullcontext():
        if interrupted:
            num_fetched += _run_pass(config, out, record, last, files)
        # The same command resumes an interrupted retry. It does not start another retry right after it.
        if config.retry_failed and not (interrupted and last["folder"]):
            again = _begin_retry(out, record)
            num_fetched += _run_pass(config, out, record, again, files) if again else 0
    return _summary(out, record, num_fetched, time.perf_counter() - start)


def _open_record(config: DownloadConfig, out: str, files: list[str]) -> dict[str, Any]:
    """Returns the record of the download in `out`, and starts one if there is none."""
    record = read_record(out)
    digest = url_lists.digest(files)
    if record is None or not record["passes"][-1]["finished"]:
        check_writable(out, "out")
    if record is None:
        if has_shards(out):
            raise ValueError(f"out={config.out}: holds raw shards without their record; give another folder")
        with UrlList(config, files) as url_list:
            if not url_list.counts.rows:
                raise ValueError(f"url_list={config.url_list}: holds no rows; give a list with URLs")
            _preflight(config, url_list.counts.sample)
            url_list.write(out)
            counts = url_list.counts
        record = {
            "version": RECORD_VERSION,
            "urls": {"list": redact(config.url_list), "digest": digest, **dataclasses.asdict(counts)},
            "fixed": config.fixes_the_result(),
            "code_version": code_version(),
            "passes": [{"folder": "", "rows": counts.urls, "finished": False}],
        }
        write_record(out, record)
        return record
    if record["urls"]["digest"] != digest:
        raise ValueError(
            f"url_list={config.url_list}: is not the list that was downloaded to {config.out} "
            f"({record['urls']['list']}, or its content changed); give that one, or another --out"
        )
    for name, value in config.fixes_the_result().items():
        before = record["fixed"].get(name, value)  # a record of an earlier version lacks what did not exist then
        if value != before:
            raise ValueError(f"{name}={value}: {config.out} was started with {before}; give that, or another --out")
    if not record["passes"][0]["finished"]:
        _preflight(config, record["urls"]["sample"])
        if record["version"] > 1 and not is_written(out, record["urls"]["urls"]):
            with UrlList(config, files) as url_list:
                url_list.write(out)
    return record


def _preflight(config: DownloadConfig, sample: Sequence[str]) -> None:
    if config.preflight and sample:
        num = min(config.preflight, len(sample))
        urls = [sample[i * len(sample) // num] for i in range(num)]
        directives = OPT_OUT_DIRECTIVES if config.respect_opt_out else ()
        preflight(urls, config.limits, config.consent, config.timeout, directives)


def _begin_retry(out: str, record: dict[str, Any]) -> dict[str, Any] | None:
    """Starts a pass over the failed rows that may succeed now. Returns None if there are none."""
    names = url_lists.LIST_SCHEMA.names
    tables = [url_lists.LIST_SCHEMA.empty_table()]
    replaced: Counter[str] = Counter()
    for table in failed_rows(raw_shards(out), names):
        reasons = [failure_reason(message) for message in table.column("error_message").to_pylist()]
        again = pa.array([reason not in NOT_TO_RETRY for reason in reasons], pa.bool_())
        replaced.update(reason for reason in reasons if reason not in NOT_TO_RETRY)
        tables.append(table.filter(again).select(names).cast(url_lists.LIST_SCHEMA))
    rows = pa.concat_tables(tables).sort_by("row")
    if not rows.num_rows:
        print("no failed row is left that might succeed", flush=True)
        return None
    part = {
        "folder": f"retry-{len(record['passes']):04d}",
        "rows": rows.num_rows,
        "finished": False,
        "replaced": dict(sorted(replaced.items())),
    }
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer)
    storage.write_bytes(storage.join(out, part["folder"], "urls.parquet"), memoryview(buffer.getvalue()))
    record["passes"].append(part)
    write_record(out, record)
    return part


def _run_pass(config: DownloadConfig, out: str, record: dict[str, Any], part: dict[str, Any], files: list[str]) -> int:
    """Fetches the missing shards of a pass and returns the number of rows fetched."""
    from pipelines.download.fetching import GuardedDownloader, run_on_ray, run_on_this_machine

    folder = storage.join(out, part["folder"]) if part["folder"] else out
    work = storage.join(folder, TEMPORARY)
    num_shards = -(-part["rows"] // config.rows_per_shard)
    downloader = GuardedDownloader(
        limits=config.limits,
        consent=config.consent,
        output_folder=folder,
        columns=url_lists.LIST_SCHEMA.names,
        rows_per_shard=config.rows_per_shard,
        num_threads=config.num_threads,
        timeout=config.timeout,
        retries=config.retries,
        opt_out_directives=list(OPT_OUT_DIRECTIVES) if config.respect_opt_out else [],
    )
    run = run_on_ray if config.distributor == "ray" else run_on_this_machine
    before = done = read_stats(folder)
    if before:
        print(f"{len(before)} of {num_shards} shards are there already", flush=True)
    for _ in range(_NUM_ATTEMPTS):
        if len(done) == num_shards:
            break
        storage.remove_folder(work)
        with showing_progress(folder, part["rows"], done, config.progress_every_seconds):
            tables = _tables(config, out, record, part, files)
            run(downloader, _tasks(config, tables, folder, done), config.num_processes or os.cpu_count() or 1)
        done = read_stats(folder, before)
    storage.remove_folder(work)
    if len(done) < num_shards:
        raise OSError(f"{num_shards - len(done)} of {num_shards} shards could not be written; see above, and run again")
    part["finished"] = True
    part["counts"] = dict(sorted(_count(done).items()))
    write_record(out, record)
    storage.remove_folder(storage.join(out, LIST_FOLDER))
    return part["rows"] - sum(stats["count"] for stats in before.values())


def _tables(
    config: DownloadConfig, out: str, record: Mapping[str, Any], part: Mapping[str, Any], files: list[str]
) -> Iterator[pa.Table]:
    """Returns the rows of a pass."""
    if part["folder"]:
        content = storage.read_bytes(storage.join(out, part["folder"], "urls.parquet"))
        return iter([pq.read_table(pa.BufferReader(content))])
    return read_written(out) if record["version"] > 1 else read_by_rows(config, files)


def _tasks(
    config: DownloadConfig, tables: Iterator[pa.Table], folder: str, done: Mapping[int, Any]
) -> Iterator[tuple[int, str]]:
    """Yields the number and the file of rows of each missing shard. Writes each file when its task is requested."""
    for number, table in enumerate(url_lists.shards(tables, config.rows_per_shard)):
        if number not in done:
            rows = pa.BufferOutputStream()
            with pa.ipc.new_file(rows, table.schema) as writer:
                writer.write_table(table)
            uri = storage.join(folder, TEMPORARY, f"{number}.feather")
            storage.write_bytes(uri, memoryview(rows.getvalue()))
            yield number, uri


def _count(shards: Mapping[int, Mapping[str, Any]]) -> Counter[str]:
    """Counts rows by outcome: `success`, or the reason for the failure."""
    counts: Counter[str] = Counter()
    for stats in shards.values():
        for message, count in stats.get("status_dict", {}).items():
            counts["success" if message == "success" else failure_reason(message)] += count
    return counts


def _summary(out: str, record: Mapping[str, Any], num_fetched: int, seconds: float) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for part in record["passes"]:
        counts.update(part["counts"])
        counts.subtract(part.get("replaced", {}))
    urls = record["urls"]
    num_urls, num_succeeded = record["passes"][0]["rows"], counts.pop("success", 0)
    failures = {reason: count for reason, count in counts.most_common() if count}
    for line in describe(urls) if record["version"] > 1 else []:
        print(line, flush=True)
    share = num_succeeded / max(num_urls, 1)
    others = ", the others by reason:" if failures else ""
    print(f"{num_urls:,} URLs: {num_succeeded:,} images ({share:.1%}){others}", flush=True)
    for reason, count in failures.items():
        print(f"  {reason:16} {count}", flush=True)
    return {
        "out": out,
        "digest": urls["digest"],
        "rows": urls["rows"],
        "rejected": urls.get("rejected", {}),
        "urls": num_urls,
        "captions": urls.get("captions_kept"),
        "succeeded": num_succeeded,
        "failed": num_urls - num_succeeded,
        "failures": failures,
        "passes": len(record["passes"]),
        "fetched": num_fetched,
        "seconds": round(seconds, 3),
        "images_per_second": round(num_fetched / seconds, 3),
    }
