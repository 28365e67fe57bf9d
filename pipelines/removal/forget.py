"""Removes samples from a data set, and says which runs have seen them.

groupvit forget --data data/cc3m --out data/cc3m-2 --hosts example.org --runs runs
groupvit forget --data data/cc3m --report report.json --urls urls.txt --runs s3://bucket/runs
"""

import contextlib
import json
import sys
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.dataset.format import DatasetInfo, digest_of_manifest, open_dataset, refuse_existing
from pipelines.errors import PartlyDone
from pipelines.local.writable import check_file_writable, check_writable
from pipelines.provenance import redact
from pipelines.removal.config import ForgetConfig
from pipelines.removal.entries import read_entries
from pipelines.removal.hits import Hits, find_hits
from pipelines.removal.report import Answer, lists_of, show, summary_of
from pipelines.removal.rewriting import write_without
from pipelines.removal.run_records import (
    data_digests,
    find_runs,
    job_id,
    record_of_folder,
    record_of_mlflow,
    runs_in_mlflow,
)
from pipelines.removal.sightings import made_from, sightings_of
from pipelines.runs.folder import RunFolder


def forget(config: ForgetConfig) -> dict[str, Any]:
    """Writes the new data set and the report. Returns the report's summary, JSON-safe.

    Raises:
        ValueError: The input is invalid, or no sample matches. Nothing is written then.
        PartlyDone: For some runs it is not known what they saw. All else is done.
    """
    entries = read_entries(config)
    info = open_dataset(config.data)
    out = None if config.out is None else storage.absolute(config.out)
    if out is not None:
        refuse_existing(out)
        check_writable(out, "out")
    check_file_writable(config.report_uri, "report")
    folders = {run.uri: run for uri in config.runs for run in find_runs(uri)}
    others = {} if config.tracking_uri is None else runs_in_mlflow(config.tracking_uri, info.digest)
    hits = find_hits(info, entries)
    answers = [_answer(run, info, hits) for run in folders.values()]
    for run in folders.values() if others else ():
        with contextlib.suppress(ValueError, OSError):  # the answer about this run says why it cannot be read
            others.pop(job_id(run), None)
    answers += [_answer_of_mlflow(run, info, hits) for run in others.values()]
    summary = summary_of(info, entries, hits, answers)
    show(summary, entries, hits)

    def write_report(manifest: pa.Table | None) -> None:
        if manifest is not None:
            num_samples = int(manifest.column("rows").to_numpy().sum(dtype=np.int64))
            summary["out"] = {
                "uri": redact(out or ""),
                "digest": digest_of_manifest(manifest),
                "num_samples": num_samples,
            }
        content = summary | lists_of(entries, hits, answers)
        storage.write_bytes(config.report_uri, (json.dumps(content, indent=1) + "\n").encode())

    if out is None:
        write_report(None)
    else:
        write_without(info, hits, out, write_report)
        print(f"wrote {redact(out)}", file=sys.stderr)
    print(f"wrote {redact(config.report_uri)}", file=sys.stderr)
    result = {**summary, "report": redact(config.report_uri)}
    if unknown := summary["runs_not_known"]:
        raise PartlyDone(
            f"of {len(unknown)} of {len(answers)} runs it is not known what they have seen: {unknown[0]['reason']}",
            result,
        )
    return result


def _answer(run: RunFolder, info: DatasetInfo, hits: Hits) -> Answer:
    try:
        digests = data_digests(run)
        if info.digest in digests:
            return Answer(run=run.uri, seen=sightings_of(record_of_folder(run), info, hits))
        before = made_from(info, digests)
    except (ValueError, OSError) as error:
        return Answer(run=run.uri, reason=" ".join(str(error).split()))
    if before is None:
        return Answer(run=run.uri)
    reason = f"{run.uri}: trains on {before}, from which {info.uri} was made: give that one as data"
    return Answer(run=run.uri, reason=reason)


def _answer_of_mlflow(run: Any, info: DatasetInfo, hits: Hits) -> Answer:
    name = f"MLflow run {run.info.run_id}"
    try:
        return Answer(run=name, seen=sightings_of(record_of_mlflow(run), info, hits))
    except (ValueError, OSError) as error:
        return Answer(run=name, reason=" ".join(str(error).split()))
