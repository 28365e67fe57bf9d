"""Turns raw shards into a data set. Run: `groupvit curate --raw data/raw --out data/train`. The same command resumes an
interrupted curation. `--plan` only prints what would be done.

OUT/_curation holds the finished work, and the terms that it was started with. It is removed at the end.
"""

import dataclasses
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipelines import documents, storage
from pipelines.console.progress import ProgressLine
from pipelines.curation.config import CurateConfig, fixes_the_result, validate
from pipelines.curation.files import read_file_records
from pipelines.curation.opt_out import read_opt_out
from pipelines.curation.pieces import Report, read_report
from pipelines.curation.plan import print_plan
from pipelines.curation.raw import Piece, Shard, check_shards, describe, pieces_of, read_shards
from pipelines.curation.recaptions.account import recaption_pieces, summaries, versions_of
from pipelines.curation.recaptions.looking import check_join
from pipelines.curation.recaptions.pieces import RecaptionPiece
from pipelines.curation.summary import print_summary
from pipelines.dataset.format import MANIFEST_SCHEMA, finish_dataset, open_dataset, refuse_existing
from pipelines.dataset.schema import schema_version_of
from pipelines.local.folder_lock import only_one
from pipelines.local.writable import check_writable
from pipelines.provenance import code_version, redact

_WORK = "_curation"
_TERMS = "terms.json"
_OF_SCHEMA_2 = ("captions", "max_captions_per_image")
_NUM_THREADS = 32  # that wait for object storage


def curate(config: CurateConfig) -> dict[str, Any]:
    """Makes the data set, or its missing parts. Returns a JSON-safe summary. Raises ValueError for invalid input."""
    validate(config)
    config = dataclasses.replace(
        config,
        out=storage.absolute(config.out),
        opt_out=None if config.opt_out is None else storage.absolute(config.opt_out),
    )
    opt_out, opt_out_digest = read_opt_out(config.opt_out)
    shards = read_shards(config.sources, config.columns)
    check_shards(shards, config)
    pieces = pieces_of(shards, config.rows_per_piece)
    recaptions = recaption_pieces(config, shards, len(pieces))
    if config.plan:
        check_join(recaptions, pieces, config)
        return print_plan(config, shards, pieces, opt_out)
    terms = {
        "config": fixes_the_result(config),
        "opt_out": opt_out_digest,
        "input": _versions(config, shards),
    }
    if recaptions:
        terms["recaptions"] = versions_of(config, recaptions)
    if (done := _finished(config, terms)) is not None:
        return done
    check_join(recaptions, pieces, config)
    check_writable(config.out, "out")
    work = _begin(config, terms)
    with only_one(work, "out"):
        started = time.perf_counter()
        print(*describe(shards, config.sources), sep="\n", file=sys.stderr)
        reports = _curate(config, pieces, recaptions, work)
        return _finish(config, shards, reports, recaptions, terms, work, started)


def _curate(
    config: CurateConfig, pieces: Sequence[Piece], recaptions: Sequence[RecaptionPiece], work: str
) -> dict[str, Report]:
    """Writes all files of the data set. Returns the reports of the steps on single samples, by source."""
    from pipelines.cluster.session import ray_cluster  # Ray takes seconds to import
    from pipelines.curation.recaptions.run import run_recaptions
    from pipelines.curation.run import run_files, run_pieces

    done = _numbers(storage.list_files(storage.join(work, "index")), ".parquet")
    missing = [piece for piece in pieces if piece.number not in done]
    if len(missing) < len(pieces):
        print(f"{len(pieces) - len(missing):,} of {len(pieces):,} pieces are done already", file=sys.stderr)
    known = _numbers(storage.list_files(storage.join(work, "recaptions")), ".parquet")
    unread = [piece for piece in recaptions if piece.number not in known]
    with ray_cluster(show_logs=config.show_ray_logs):
        if unread:
            with ProgressLine("read", len(unread), "files of recaptions") as progress:
                for of_file in run_recaptions(unread, config, work):
                    progress.add(1, f"{of_file.num_captions:,} captions in the last one")
        if missing:
            num_dropped = 0
            with ProgressLine("checked", sum(piece.num_rows for piece in missing), "rows") as progress:
                for report in run_pieces(missing, config, work):
                    num_dropped += report.drops.total()
                    progress.add(report.num_rows, f"{num_dropped:,} dropped, duplicates not yet")
        names = [source.name for source in config.sources]
        reports = _reports_by_source(pieces, work, names)
        report = _sum(list(reports.values()))
        num_rows = report.num_rows - report.drops.total()
        num_captions = report.num_captions - report.caption_drops.total()
        if not num_rows:
            raise ValueError(
                f"out={config.out}: no sample passed; drops: {dict(report.drops.most_common())}. Loosen the rules"
            )
        num_written = 0
        with ProgressLine("compared and written", num_rows, "rows") as progress:
            counts = (len(pieces), num_rows, num_captions)
            for _, num_samples, num_of_file in run_files(*counts, config, names, work, recaptions):
                num_written += num_samples
                progress.add(num_of_file, f"{num_written:,} kept")
    return reports


def _finish(
    config: CurateConfig,
    shards: Sequence[Shard],
    reports: Mapping[str, Report],
    recaptions: Sequence[RecaptionPiece],
    terms: Mapping[str, Any],
    work: str,
    started: float,
) -> dict[str, Any]:
    """Makes the data set visible, and cleans up."""
    names = [source.name for source in config.sources]
    records = read_file_records(work)
    drops = {name: Counter(report.drops) for name, report in reports.items()}
    caption_drops = {name: Counter(report.caption_drops) for name, report in reports.items()}
    kept: Counter[str] = Counter()
    captions_kept: Counter[str] = Counter()
    for record in records:
        kept.update(record["kept"])
        captions_kept.update(record["captions_kept"])
        for name in names:
            drops[name].update(record["drops"].get(name, {}))
            caption_drops[name].update(record["caption_drops"].get(name, {}))
    rows_in = {name: report.num_rows for name, report in reports.items()}
    captions_in = {name: report.num_captions for name, report in reports.items()}
    for name in names:
        assert rows_in[name] == kept[name] + drops[name].total(), f"{name}: rows lost or counted twice"
        told = captions_kept[name] + caption_drops[name].total()
        assert captions_in[name] == told, f"{name}: captions lost or counted twice"
    seconds = _sum(list(reports.values())).seconds
    summary = {
        "out": config.out,
        "num_rows": sum(rows_in.values()),
        "num_samples": kept.total(),
        "drops": dict(sum(drops.values(), Counter()).most_common()),
        "num_captions_in": sum(captions_in.values()),
        "num_captions": captions_kept.total(),
        "caption_drops": dict(sum(caption_drops.values(), Counter()).most_common()),
        "sources": {
            source.name: {
                "uri": redact(source.uri),
                "version": terms["input"][source.name]["version"],
                "num_rows": rows_in[source.name],
                "num_samples": kept[source.name],
                "drops": dict(drops[source.name].most_common()),
                "num_captions_in": captions_in[source.name],
                "num_captions": captions_kept[source.name],
                "caption_drops": dict(caption_drops[source.name].most_common()),
                "notes": dict(reports[source.name].notes),
            }
            for source in config.sources
        },
        "unreadable_shards": [shard.uri for shard in shards if shard.error and not shard.rows],
        "read_in_part": [line for report in reports.values() for line in report.unreadable],
    }
    if recaptions:
        summary["recaptions"] = summaries(config, recaptions, records, terms["recaptions"], work)
    if not kept.total():
        raise ValueError(f"out={config.out}: no sample passed; drops: {summary['drops']}. Loosen the rules")
    data = storage.join(config.out, "data")
    manifests = [pa.Table.from_pylist(record["manifest"], schema=MANIFEST_SCHEMA) for record in records]
    written = {row["file"] for record in records for row in record["manifest"]}
    for name in storage.list_files(data):  # partial files of a killed process
        if f"data/{name}" not in written:
            storage.remove_file(storage.join(data, name))
    info = finish_dataset(
        config.out,
        manifests,
        metadata={
            "drops": {name: source["drops"] for name, source in summary["sources"].items()},
            "curation": summary,
            "curation_terms": dict(terms),
            "terms_hash": _hash(terms),
            "code_version": code_version(),
            **({"recaptions": summary["recaptions"]} if recaptions else {}),
        },
        schema_version=schema_version_of(recaptioned=bool(recaptions)),
    )
    storage.remove_folder(work)
    print_summary(summary, seconds, time.perf_counter() - started)
    return summary | {"digest": info.digest}


def _finished(config: CurateConfig, terms: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the summary if OUT already holds this data set. Raises ValueError if OUT holds anything else."""
    try:
        if "dataset.json" not in storage.list_files(config.out):
            return None
    except OSError as error:
        raise ValueError(_unwritable(config, error)) from error
    info = open_dataset(config.out)
    known = terms
    if info.metadata["schema_version"] == 1:  # made before these fields existed, with what the same command meant then
        fields = {name: value for name, value in terms["config"].items() if name not in _OF_SCHEMA_2}
        known = {**terms, "config": fields}
    if info.metadata.get("terms_hash") != _hash(known):
        refuse_existing(config.out)
    storage.remove_folder(storage.join(config.out, _WORK))
    print(f"{config.out} already holds this data set: nothing to do", file=sys.stderr)
    return {**info.metadata["curation"], "digest": info.digest}


def _begin(config: CurateConfig, terms: Mapping[str, Any]) -> str:
    """Returns the folder of the finished work. Raises ValueError if it was started with other terms."""
    work = storage.join(config.out, _WORK)
    try:
        try:
            uri = storage.join(work, _TERMS)
            begun = documents.read(uri, dict[str, Any], f"remove {work}", storage.MAX_BYTES)
        except FileNotFoundError:
            if storage.list_files(storage.join(config.out, "data")):
                raise ValueError(
                    f"out={config.out}: data/ holds files of something unfinished; remove them, or give another folder"
                ) from None
            storage.write_bytes(storage.join(work, _TERMS), json.dumps(terms, indent=2).encode())
            return work
    except OSError as error:
        raise ValueError(_unwritable(config, error)) from error
    if begun != json.loads(json.dumps(terms)):
        raise ValueError(
            f"out={config.out}: was started with {_difference(begun, terms)}; give the same again, or remove {work}"
        )
    return work


def _unwritable(config: CurateConfig, error: OSError) -> str:
    return f"out={config.out}: cannot be written ({error}); check the path, the bucket and the credentials"


def _difference(begun: Mapping[str, Any], terms: Mapping[str, Any]) -> str:
    fields = [
        f"{name}={begun['config'].get(name)} instead of {value}"
        for name, value in terms["config"].items()
        if begun.get("config", {}).get(name) != value
    ]
    if begun.get("opt_out") != terms["opt_out"]:
        fields.append("another opt-out list")
    if begun.get("input") != terms["input"]:
        fields.append("other raw shards")
    if begun.get("recaptions") != terms.get("recaptions"):
        fields.append("other recaptions")
    return ", ".join(fields) or "other terms"


def _versions(config: CurateConfig, shards: Sequence[Shard]) -> dict[str, Any]:
    """Identifies the input: a digest of the names, sizes and times of the shards of each source."""
    return {
        source.name: {
            "uri": redact(source.uri),
            "num_shards": sum(shard.source == index for shard in shards),
            "version": _hash([[shard.uri, shard.version] for shard in shards if shard.source == index]),
        }
        for index, source in enumerate(config.sources)
    }


def _reports_by_source(pieces: Sequence[Piece], work: str, names: Sequence[str]) -> dict[str, Report]:
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        reports = list(threads.map(lambda piece: read_report(work, piece.number), pieces))
    by_piece = list(zip(pieces, reports, strict=True))
    return {
        name: _sum([report for piece, report in by_piece if piece.source == index]) for index, name in enumerate(names)
    }


def _sum(reports: Sequence[Report]) -> Report:
    total = Report()
    for report in reports:
        total.add(report)
    return total


def _numbers(names: Sequence[str], suffix: str) -> set[int]:
    return {int(name.removesuffix(suffix)) for name in names if name.endswith(suffix) and storage.is_data(name)}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
