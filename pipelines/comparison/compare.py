"""Compares evaluations: what differs, and whether it could be chance.

groupvit compare evaluation/a evaluation/b --out comparison
groupvit compare demo-soft demo-hard --tracking-uri http://localhost:5000
groupvit compare runs/a runs/b runs/c --step 2000
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import storage
from pipelines.comparison.config import CompareConfig
from pipelines.comparison.result import CAVEAT, Comparison, compare_runs
from pipelines.comparison.source import ComparedRun, check_comparable, find_run
from pipelines.console.tables import aligned, csv_text
from pipelines.experiments.config import TrackingConfig
from pipelines.local.writable import check_writable
from pipelines.tracking.errors import one_line
from pipelines.tracking.places import artifacts_beside, check_database
from pipelines.tracking.runs import experiment_id, retry_few_requests
from pipelines.tracking.tables import log_table

if TYPE_CHECKING:
    from mlflow import MlflowClient

COMPARISON_TAG = "groupvit.comparison"
"""MLflow tag of runs that hold only a comparison: the digest of the compared evaluations."""
_FOLDER = "comparison"
_MOST_LINES = 25
_LONGEST_TAG = 5000


def compare(config: CompareConfig) -> dict[str, Any]:
    """Compares, prints, writes and logs. Returns the content of comparison.json. Raises ValueError for invalid runs."""
    tracking_uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if config.mlflow_run is not None and not tracking_uri:
        raise ValueError(
            f"mlflow_run={config.mlflow_run} is given, but tracking_uri is not, and MLFLOW_TRACKING_URI is not set"
        )
    if config.out is not None:
        check_writable(config.out, "out")
    if config.log:
        check_database(tracking_uri, "tracking_uri")
    retry_few_requests()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    with tempfile.TemporaryDirectory() as temporary:
        runs = [
            find_run(
                run, step=config.step, benchmark=config.benchmark, tracking_uri=tracking_uri, folder=Path(temporary)
            )
            for run in config.runs
        ]
    check_comparable(config.runs, runs)
    comparison = compare_runs(runs)
    print(table(comparison))
    files = _files(comparison)
    if config.out is not None:
        for name, content in files.items():
            storage.write_bytes(storage.join(config.out, name), content)
    summary = comparison.summary()
    if tracking_uri and config.log:
        summary["mlflow_run"] = _log(comparison, files, config, tracking_uri)
        print(f"MLflow run: {summary['mlflow_run']}")
    return summary


def table(comparison: Comparison) -> str:
    """Formats the whole comparison for the terminal."""
    lines = [""]
    lines += [f"{label}  {run.name}  ({run.source})" for label, run in _labelled(comparison)]
    for part in comparison.parts:
        lines += ["", *aligned(*comparison.metric_table(part))]
    for part in comparison.parts:
        header, rows = comparison.class_table(part)
        more = [f"… and {len(rows) - _MOST_LINES} more classes"] if len(rows) > _MOST_LINES else []
        lines += ["", *aligned(header, rows[:_MOST_LINES]), *more]
    header, rows = comparison.difference_table()
    lines += ["", *(aligned(header, rows) if rows else ["no setting differs"])]
    unknown = [label for label, run in _labelled(comparison) if not run.config]
    lines += [f"how {', '.join(unknown)} was trained is not known: the checkpoint is not there"] if unknown else []
    return "\n".join([*lines, "", *map(comparison.sentence, comparison.results), "", CAVEAT, ""])


def _files(comparison: Comparison) -> dict[str, bytes]:
    from pipelines.comparison.pictures import draw  # matplotlib takes a second to import

    files = {f"{name}.png": content for name, content in draw(comparison).items()}
    for part in comparison.parts:
        for kind, (header, rows) in {
            "metrics": comparison.metric_table(part),
            "class_iou": comparison.class_table(part),
        }.items():
            files[f"{kind}_{part}.csv"] = csv_text([header, *rows]).encode()
    header, rows = comparison.difference_table()
    files["settings.csv"] = csv_text([header, *rows]).encode()
    # Written last: a folder with comparison.json is complete.
    files["comparison.json"] = (json.dumps(comparison.summary(), indent=2, allow_nan=False) + "\n").encode()
    return files


def _log(comparison: Comparison, files: dict[str, bytes], config: CompareConfig, tracking_uri: str) -> str:
    """Logs the comparison to MLflow, in place of an earlier one of the same evaluations. Returns the run's id."""
    from mlflow import MlflowClient

    with one_line(tracking_uri), tempfile.TemporaryDirectory() as temporary:
        client = MlflowClient(tracking_uri=tracking_uri)
        run_id = config.mlflow_run or _own_run(client, comparison, tracking_uri)
        for name, content in files.items():
            (Path(temporary) / name).write_bytes(content)
        client.log_artifacts(run_id, temporary, _FOLDER)
        for part in comparison.parts:
            log_table(client, run_id, f"{_FOLDER}/metrics_{part}.json", *comparison.metric_table(part))
            log_table(client, run_id, f"{_FOLDER}/class_iou_{part}.json", *comparison.class_table(part))
        for result in comparison.results:
            pair = f"{comparison.labels[result.second]}-{comparison.labels[result.first]}"
            client.log_metric(run_id, f"comparison/{result.part}/{pair}", result.test.mean)
            client.log_metric(run_id, f"comparison/{result.part}/{pair}_p_value", result.p_value)
        if config.mlflow_run is None:
            said = [f"**{label}** {run.name} ({run.source})" for label, run in _labelled(comparison)]
            said += [*map(comparison.sentence, comparison.results), CAVEAT]
            client.set_tag(run_id, "mlflow.note.content", "\n\n".join(said)[:_LONGEST_TAG])
            client.set_terminated(run_id, "FINISHED")
    return run_id


def _labelled(comparison: Comparison) -> list[tuple[str, ComparedRun]]:
    return list(zip(comparison.labels, comparison.runs, strict=True))


def _own_run(client: "MlflowClient", comparison: Comparison, tracking_uri: str) -> str:
    """Finds the run that holds only the comparison of these evaluations, or creates it. Returns its id."""
    content = json.dumps([[run.source, dict(run.summary), len(run.image_iou)] for run in comparison.runs])
    digest = hashlib.sha256(content.encode()).hexdigest()
    experiment = experiment_id(client, TrackingConfig.experiment, artifacts_beside(tracking_uri))
    found = client.search_runs([experiment], f"tags.`{COMPARISON_TAG}` = '{digest}'", max_results=1)
    if found:
        return found[0].info.run_id
    names = " vs ".join(run.name for run in comparison.runs)
    tags = {COMPARISON_TAG: digest, "mlflow.source.name": "groupvit compare"}
    return client.create_run(experiment, run_name=f"compare {names}"[:250], tags=tags).info.run_id
