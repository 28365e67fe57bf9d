"""Downloads the images of a URL list into raw shards (pipelines/raw_shards.py says how they lie).

groupvit download --preset cc3m --url-list Train_GCC-training.tsv --out s3://bucket/cc3m-raw

The same command continues what was stopped, however it was stopped. Proxies, DNS and certificates are the machine's:
HTTP_PROXY, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE; with Ray, those of the cluster's machines, which must reach OUT.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage, url_lists
from pipelines.download_config import DownloadConfig
from pipelines.progress_line import duration
from pipelines.provenance import code_version, redact
from pipelines.raw_shards import (
    RECORD_VERSION,
    failed_rows,
    failure_reason,
    has_shards,
    raw_shards,
    read_record,
    read_stats,
    write_record,
)
from pipelines.writable import check_writable

OPT_OUT_DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
NOT_TO_RETRY = frozenset({"opt_out", "refused_address", "invalid_url"})
"""What was refused, by the site or by us, will be refused again."""
_NUM_ATTEMPTS = 3  # at shards that could not be written
_NUM_PREFLIGHT_URLS = 64  # kept for it, spread over the list


def download(config: DownloadConfig) -> dict[str, Any]:
    """Fetches what has not been fetched yet; prints and returns counts.

    ValueError for what the user got wrong, before anything is written. OSError if shards could not be written.
    """
    start = time.perf_counter()
    out = storage.absolute(config.out)
    files = url_lists.list_files(storage.absolute(config.url_list))
    record = _open_record(config, out, files)
    last = record["passes"][-1]
    interrupted, num_fetched = not last["finished"], 0
    if interrupted:
        num_fetched += _run_pass(config, out, record, last, files)
    # The same command continues an interrupted retry; it does not begin another one right after.
    if config.retry_failed and not (interrupted and last["folder"]):
        again = _begin_retry(out, record)
        num_fetched += _run_pass(config, out, record, again, files) if again else 0
    return _summary(out, record, num_fetched, time.perf_counter() - start)


def _open_record(config: DownloadConfig, out: str, files: list[str]) -> dict[str, Any]:
    """The record of the download in `out`, which is begun if there is none."""
    record = read_record(out)
    digest = url_lists.digest(files)
    if record is None or not record["passes"][-1]["finished"]:
        check_writable(out, "out")
    if record is None:
        if has_shards(out):
            raise ValueError(f"out={config.out}: holds raw shards without their record; give another folder")
        num_rows, sample = _scan(config, files)
        if not num_rows:
            raise ValueError(f"url_list={config.url_list}: holds no rows; give a list with URLs")
        record = {
            "version": RECORD_VERSION,
            "urls": {"list": redact(config.url_list), "digest": digest, "rows": num_rows, "sample": sample},
            "fixed": config.fixes_the_result(),
            "code_version": code_version(),
            "passes": [{"folder": "", "rows": num_rows, "finished": False}],
        }
        _preflight(config, record)
        write_record(out, record)
        return record
    if record["urls"]["digest"] != digest:
        raise ValueError(
            f"url_list={config.url_list}: is not the list that was downloaded to {config.out} "
            f"({record['urls']['list']}, or its content changed); give that one, or another --out"
        )
    for name, value in config.fixes_the_result().items():
        before = record["fixed"].get(name)
        if value != before:
            raise ValueError(f"{name}={value}: {config.out} was begun with {before}; give that, or another --out")
    if not record["passes"][0]["finished"]:
        _preflight(config, record)
    return record


def _scan(config: DownloadConfig, files: list[str]) -> tuple[int, list[str]]:
    """Number of rows of the list, and some URLs from all over it. Reads all of it, so that mistakes show now."""
    num_rows, every, sample = 0, 1, []
    for table in url_lists.read_list(files, config.columns):
        urls = table.column("url")
        sample += [(num_rows + i, urls[i].as_py()) for i in range(-num_rows % every, len(urls), every)]
        num_rows += len(urls)
        while len(sample) > _NUM_PREFLIGHT_URLS:
            every *= 2
            sample = [(row, url) for row, url in sample if row % every == 0]
    return num_rows, [url for _, url in sample if url]


def _preflight(config: DownloadConfig, record: Mapping[str, Any]) -> None:
    sample = record["urls"]["sample"]
    if config.preflight and sample:
        from pipelines.preflight import preflight

        num = min(config.preflight, len(sample))
        urls = [sample[i * len(sample) // num] for i in range(num)]
        directives = OPT_OUT_DIRECTIVES if config.respect_opt_out else ()
        preflight(urls, config.limits, config.timeout, directives, config.user_agent_token)


def _begin_retry(out: str, record: dict[str, Any]) -> dict[str, Any] | None:
    """A new pass over the rows that are failed and may succeed; None if there are none."""
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
    """Fetch the shards of a pass that are not there; returns the number of rows fetched."""
    from pipelines.fetching import TEMPORARY, GuardedDownloader, run_on_ray, run_on_this_machine

    folder = storage.join(out, part["folder"]) if part["folder"] else out
    work = storage.join(folder, TEMPORARY)
    num_shards = -(-part["rows"] // config.rows_per_shard)
    downloader = GuardedDownloader(
        limits=config.limits,
        output_folder=folder,
        columns=url_lists.LIST_SCHEMA.names,
        rows_per_shard=config.rows_per_shard,
        num_threads=config.num_threads,
        timeout=config.timeout,
        retries=config.retries,
        user_agent_token=config.user_agent_token,
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
        with _progress(folder, part["rows"], before, config.progress_every_seconds):
            run(downloader, _tasks(config, part, folder, files, done), config.num_processes or os.cpu_count() or 1)
        done = read_stats(folder, before)
    storage.remove_folder(work)
    if len(done) < num_shards:
        raise OSError(f"{num_shards - len(done)} of {num_shards} shards could not be written; see above, and run again")
    part["finished"] = True
    part["counts"] = dict(sorted(_count(done).items()))
    write_record(out, record)
    return part["rows"] - sum(stats["count"] for stats in before.values())


def _tasks(
    config: DownloadConfig, part: Mapping[str, Any], folder: str, files: list[str], done: Mapping[int, Any]
) -> Iterator[tuple[int, str]]:
    """Numbers and rows of the shards that are not done, their rows written to files as they are asked for."""
    from pipelines.fetching import TEMPORARY

    if part["folder"]:
        content = storage.read_bytes(storage.join(folder, "urls.parquet"))
        tables = iter([pq.read_table(pa.BufferReader(content))])
    else:
        tables = url_lists.read_list(files, config.columns)
    for number, table in enumerate(url_lists.shards(tables, config.rows_per_shard)):
        if number not in done:
            rows = pa.BufferOutputStream()
            with pa.ipc.new_file(rows, table.schema) as writer:
                writer.write_table(table)
            uri = storage.join(folder, TEMPORARY, f"{number}.feather")
            storage.write_bytes(uri, memoryview(rows.getvalue()))
            yield number, uri


def _count(shards: Mapping[int, Mapping[str, Any]]) -> Counter[str]:
    """Rows by what became of them: `success`, or the reason of their failure."""
    counts: Counter[str] = Counter()
    for stats in shards.values():
        for message, count in stats["status_dict"].items():
            counts["success" if message == "success" else failure_reason(message)] += count
    return counts


@contextmanager
def _progress(folder: str, num_rows: int, before: Mapping[int, dict[str, Any]], seconds: float) -> Iterator[None]:
    """Prints a line now and then, from the statistics of the shards that have been finished."""
    start, known, stop = time.perf_counter(), dict(before), threading.Event()
    num_before = sum(stats["count"] for stats in known.values())

    def show() -> None:
        nonlocal known
        while not stop.wait(seconds):
            try:
                known = read_stats(folder, known)
            except OSError:
                continue  # the download itself goes on as long as it can
            num_done = sum(stats["count"] for stats in known.values())
            success = sum(stats["successes"] for stats in known.values()) / max(num_done, 1)
            rate = (num_done - num_before) / (time.perf_counter() - start)
            left = duration((num_rows - num_done) / rate) if rate else "unknown"
            print(f"{num_done}/{num_rows} rows  success {success:.0%}  {rate:.0f} images/s  ETA {left}", flush=True)
            if num_done == num_rows:
                return

    thread = threading.Thread(target=show, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _summary(out: str, record: Mapping[str, Any], num_fetched: int, seconds: float) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for part in record["passes"]:
        counts.update(part["counts"])
        counts.subtract(part.get("replaced", {}))
    num_rows, num_succeeded = record["urls"]["rows"], counts.pop("success", 0)
    failures = {reason: count for reason, count in counts.most_common() if count}
    print(
        f"{num_rows} rows: {num_succeeded} images ({num_succeeded / num_rows:.1%}), the others by reason:", flush=True
    )
    for reason, count in failures.items():
        print(f"  {reason:16} {count}", flush=True)
    return {
        "out": out,
        "digest": record["urls"]["digest"],
        "rows": num_rows,
        "succeeded": num_succeeded,
        "failed": num_rows - num_succeeded,
        "failures": failures,
        "passes": len(record["passes"]),
        "fetched": num_fetched,
        "seconds": round(seconds, 3),
        "images_per_second": round(num_fetched / seconds, 3),
    }
