"""What is known of a run: from its folder, or from MLflow if only that is left."""

import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from groupvit.config import from_dict
from pipelines import storage
from pipelines.experiments.amendments import texts_in, texts_of
from pipelines.experiments.config import DataConfig, ExperimentConfig, IngestConfig, TrainingConfig
from pipelines.experiments.fixed import amended
from pipelines.runs.folder import JOB_ID, RunFolder
from pipelines.runs.skipped import skipped_steps
from pipelines.tracking.errors import one_line
from pipelines.tracking.places import database_path
from pipelines.tracking.runs import JOB_TAG, LAST_STEP_TAG, retry_few_requests

Config = TypeVar("Config")

_DIGEST = re.compile(r"[0-9a-f]{32}")
_RUNS_PER_REQUEST = 1000


class UnknownOrderError(ValueError):
    """What a run has seen cannot be computed. One line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run trains on, and how far it is."""

    run: str
    """URI of its folder, or `MLflow run ID`."""
    config: ExperimentConfig
    """Of a run in MLflow, only what the order of samples depends on."""
    digests: tuple[str, ...]
    """Of the data sets, in the order of `config.data.sources`."""
    newest_step: int
    """Of the newest checkpoint, or the last step that MLflow knows; 0 without one."""
    checkpoint_steps: tuple[int, ...] | None
    """None: unknown."""
    samples_seen: tuple[int, ...] | None
    """Number of samples that the newest checkpoint has counted, by data set. None: unknown."""
    num_substituted: int
    """Number of corrupt images in place of which the run was shown another one of the same window."""
    skipped: tuple[int, ...]
    """Steps that were skipped because they would have done harm, from 0. The config has those of amendments."""
    num_skipped_unknown: int
    """Number of skipped steps that are not in `skipped`: MLflow does not know which they were."""


def find_runs(uri: str) -> list[RunFolder]:
    """Returns the run in a folder, or all that lie in it and, for sweeps, one level deeper.

    Raises ValueError if there is none.
    """
    found = list(_runs_in(storage.absolute(uri), levels=2))
    if not found:
        storage.check_bucket(uri)
        raise ValueError(f"runs={uri}: holds no run, because no run.json; give folders of runs")
    return found


def _runs_in(uri: str, levels: int) -> Iterator[RunFolder]:
    if "run.json" in storage.list_files(uri):
        yield RunFolder(uri)
    elif levels:
        for name in storage.list_folders(uri):
            yield from _runs_in(storage.join(uri, name), levels - 1)


def data_digests(run: RunFolder) -> tuple[str, ...]:
    """Returns the digests of the data sets that a run trains on."""
    digests = _description(run)["fixed"].get("data.digests")
    if not isinstance(digests, list) or not all(isinstance(digest, str) for digest in digests):
        raise UnknownOrderError(f"{run.uri}/run.json: does not say on which data sets the run trains")
    return tuple(digests)


def record_of_folder(run: RunFolder) -> RunRecord:
    """Reads the folder of a run. Raises ValueError, in one line, if something is damaged."""
    description = _description(run)
    try:
        config = amended(from_dict(ExperimentConfig, description["config"]), texts_of(description))
    except (TypeError, ValueError) as error:
        raise UnknownOrderError(f"{run.uri}/run.json: its config cannot be read ({error})") from error
    steps = run.checkpoint_steps()
    state = run.read_state(steps[-1]) if steps else {}
    return RunRecord(
        run=run.uri,
        config=config,
        digests=data_digests(run),
        newest_step=steps[-1] if steps else 0,
        checkpoint_steps=tuple(steps),
        samples_seen=tuple(state["samples_seen"]) if steps else None,
        num_substituted=state.get("substituted_images", 0),
        skipped=tuple(skipped_steps(run)),
        num_skipped_unknown=0,
    )


def job_id(run: RunFolder) -> str:
    """Returns the id that a run has in MLflow, too."""
    return _description(run)[JOB_ID]


def _description(run: RunFolder) -> dict[str, Any]:
    description = run.read_description()
    assert description is not None, "find_runs returns folders with a run.json"
    return description


def runs_in_mlflow(tracking_uri: str, digest: str) -> dict[str, Any]:
    """Returns MLflow's runs that train on the data set `digest`, by job id.

    Raises ValueError, in one line, if MLflow refuses or cannot be reached.
    """
    from mlflow import MlflowClient

    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"tracking_uri={tracking_uri}: cannot be asked for a data set with the digest {digest!r}")
    path = database_path(tracking_uri)
    if path is not None and not Path(path).is_file():  # MLflow would make one
        raise ValueError(f"tracking_uri={tracking_uri}: there is no such database; give that of your runs")
    retry_few_requests()
    found: dict[str, Any] = {}
    with one_line(tracking_uri):
        client = MlflowClient(tracking_uri=tracking_uri)
        experiments = _all_pages(client.search_experiments)
        ids = [experiment.experiment_id for experiment in experiments]
        for run in _all_pages(client.search_runs, ids, f"dataset.digest = '{digest}'") if ids else ():
            if JOB_TAG in run.data.tags:  # evaluations have the data set they measure on as an input, too
                found[run.data.tags[JOB_TAG]] = run
    return found


def _all_pages(search: Any, *arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(*arguments, max_results=_RUNS_PER_REQUEST, page_token=token)
        yield from page
        if not (token := page.token):
            return


def record_of_mlflow(run: Any) -> RunRecord:
    """Reads a run of `runs_in_mlflow`. Raises ValueError, in one line, if something is missing."""
    name, metrics = f"MLflow run {run.info.run_id}", run.data.metrics
    try:
        config = ExperimentConfig(
            name=name,
            data=_fields(DataConfig, run, "data", "sources", "weights", "names", "seed"),
            ingest=_fields(IngestConfig, run, "ingest", "window_size"),
            training=_fields(TrainingConfig, run, "training", "global_batch_size", "num_steps"),
        )
        config = amended(config, texts_in(run.data.tags.get("amendments", "")))
        step = int(run.data.tags.get(LAST_STEP_TAG, 0))
        digests = _digests_in_mlflow(run, config.data)
    except (KeyError, SyntaxError, TypeError, ValueError, MemoryError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UnknownOrderError(f"{name}: its params and inputs do not tell the order of samples ({reason})") from error
    return RunRecord(
        run=name,
        config=config,
        digests=digests,
        newest_step=step,
        checkpoint_steps=None,
        samples_seen=None,
        num_substituted=int(metrics.get("train/substituted_images", 0)),
        skipped=(),
        num_skipped_unknown=int(metrics.get("train/skipped_steps", 0)),
    )


def _fields(config_type: type[Config], run: Any, group: str, *names: str) -> Config:
    """Makes a config of some params of an MLflow run, which are texts of Python's values."""
    return from_dict(config_type, {name: ast.literal_eval(run.data.params[f"{group}.{name}"]) for name in names})


def _digests_in_mlflow(run: Any, data: DataConfig) -> tuple[str, ...]:
    """Returns the digest of each source. MLflow keeps one entry for a name and a digest, with the URI it saw first."""
    inputs = [entry.dataset for entry in run.inputs.dataset_inputs]
    digests = []
    for name, uri in zip(data.names or map(_last_part, data.sources), data.sources, strict=True):
        named = [dataset for dataset in inputs if dataset.name == name]
        same = [dataset for dataset in named if json.loads(dataset.source).get("uri") == uri] or named
        if len({dataset.digest for dataset in same}) != 1:
            raise ValueError(f"{len(same)} inputs have the name {name}")
        digests.append(same[0].digest)
    return tuple(digests)


def _last_part(uri: str) -> str:
    """Returns the name that a data set without one has in MLflow."""
    return uri.rstrip("/").rpartition("/")[2]
