"""Finds and reads the evaluations that `groupvit compare` is given, in folders or in MLflow runs."""

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from groupvit.config import flatten
from pipelines import documents, storage
from pipelines.runs.folder import RunFolder
from pipelines.tracking.errors import one_line

METRICS, PER_IMAGE = "metrics.json", "per_image.csv"
_STEP = re.compile(r"step-(\d+)")
_MAX_ROWS_BYTES = 2**28  # of per_image.csv
_MLFLOW_ID = re.compile(r"[0-9a-f]{32}")

ImageKey = tuple[str, str, int]
"""Part, sample_id, and the occurrence number of that id, from 1."""


@with_config(documents.KEEP_OTHERS)
class SegmentationMetrics(TypedDict):
    """metrics.json of an evaluation on a benchmark of segmentation."""

    benchmark: str
    data_digest: str
    checkpoint: Annotated[str, Field(pattern=r"\A[^\x00-\x1f]{1,4096}\z")]
    step: documents.Count
    metrics: dict[str, float | None]
    class_iou: dict[str, dict[str, float | None]]
    """IoU in percent by part and class."""


class _WithConfig(TypedDict):
    config: NotRequired[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One evaluation."""

    name: str
    source: str
    """Where it was found: a folder, or an MLflow run and a folder of its artifacts."""
    summary: Mapping[str, Any]
    """Content of its metrics.json."""
    image_iou: Mapping[ImageKey, float]
    """mIoU in percent of each image that has one."""
    config: Mapping[str, str]
    """Training config of the model, by flat dotted names. Empty if it is unknown."""


def find_run(
    given: str, *, step: int | None, benchmark: str | None, tracking_uri: str | None, folder: Path
) -> ComparedRun:
    """Returns the evaluation that `given` refers to. `folder` is for downloads.

    Raises ValueError, with a message that begins with `given`, if there is no evaluation or more than one.
    """
    if found := _evaluations_in_folder(given):
        chosen = _choose(given, found, step, benchmark)
        return _read(given, chosen, chosen)
    if storage.exists(given):
        raise ValueError(
            f"run={given} holds no evaluation: no {METRICS} in it, nor in evaluation/step-*; give the --out folder of "
            "`groupvit evaluate`, or a run with --evaluate-every-n-steps"
        )
    if "://" in given or "/" in given:
        raise ValueError(f"run={given} does not exist: give a folder, or the id or name of a run in MLflow")
    if not tracking_uri:
        raise ValueError(
            f"run={given} is not a folder, and to look for it in MLflow, tracking_uri is not given and "
            "MLFLOW_TRACKING_URI is not set"
        )
    return _from_mlflow(given, step, benchmark, tracking_uri, folder)


def _evaluations_in_folder(uri: str) -> dict[str, str]:
    """Finds complete evaluations in a folder. Returns their places by folder name ("" for the folder itself)."""
    found: dict[str, str] = {}
    if "://" not in uri and Path(uri).is_file():
        return found
    for place in (storage.absolute(uri), storage.join(storage.absolute(uri), "evaluation")):
        if METRICS in storage.list_files(place):
            found[""] = place
        for name in storage.list_folders(place):
            if METRICS in storage.list_files(storage.join(place, name)):
                found[name] = storage.join(place, name)
    return found


def _choose(given: str, found: Mapping[str, str], step: int | None, benchmark: str | None) -> str:
    """Chooses the requested evaluation among the places by folder name."""
    steps = {int(match[1]): place for name, place in found.items() if (match := _STEP.fullmatch(name))}
    others = {name: place for name, place in found.items() if name and not _STEP.fullmatch(name)}
    if benchmark is not None and others:
        if benchmark not in others:
            raise ValueError(f"run={given} has no evaluation of benchmark={benchmark}: it has {', '.join(others)}")
        return others[benchmark]
    if "" in found and (step is None or not steps):
        return found[""]
    if step is not None and steps:
        if step not in steps:
            known = ", ".join(map(str, sorted(steps)))
            raise ValueError(f"run={given} has no evaluation of step={step}: it has {known}")
        return steps[step]
    if steps:
        return steps[max(steps)]
    if len(others) == 1:
        return next(iter(others.values()))
    raise ValueError(f"run={given} has several evaluations: give --benchmark, one of {', '.join(others)}")


def _from_mlflow(given: str, step: int | None, benchmark: str | None, tracking_uri: str, folder: Path) -> ComparedRun:
    from mlflow import MlflowClient

    with one_line(tracking_uri):
        client = MlflowClient(tracking_uri=tracking_uri)
        run = _mlflow_run(client, given)
        run_id = run.info.run_id
        files = {file.path for file in client.list_artifacts(run_id, "evaluation")}
        found = {"": "evaluation"} if f"evaluation/{METRICS}" in files else {}
        for path in sorted(files):
            inside = {file.path for file in client.list_artifacts(run_id, path)}
            if f"{path}/{METRICS}" in inside:
                found[path.rpartition("/")[2]] = path
        if not found:
            raise ValueError(
                f"run={given} of MLflow holds no evaluation: no {METRICS} under evaluation/; `groupvit evaluate "
                f"--mlflow-run {run_id}` adds one"
            )
        chosen = _choose(given, found, step, benchmark)
        held = {file.path for file in client.list_artifacts(run_id, chosen)}
        target = folder / run_id
        target.mkdir(exist_ok=True)
        for name in {METRICS, PER_IMAGE} & {path.rpartition("/")[2] for path in held}:
            downloaded = client.download_artifacts(run_id, f"{chosen}/{name}", str(target))
            Path(downloaded).rename(target / name)  # its parent folders depend on the server
    config = {name: _plain(value) for name, value in run.data.params.items()}
    return _read(run.info.run_name or given, str(target), f"MLflow run {run_id}, {chosen}", config)


def _mlflow_run(client: Any, given: str) -> Any:
    """Returns the MLflow run of that id or name. Raises ValueError if there is none, or if several have the name."""
    from mlflow.exceptions import MlflowException

    if _MLFLOW_ID.fullmatch(given):
        try:
            return client.get_run(given)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ValueError(f"run={given}: MLflow has no run of this id") from None
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    name = given.replace("'", "''")
    runs = client.search_runs(experiments, f"attributes.run_name = '{name}'", max_results=5)
    if not runs:
        raise ValueError(f"run={given} is neither a folder nor the id or name of a run in MLflow")
    if len(runs) > 1:
        ids = ", ".join(run.info.run_id for run in runs)
        raise ValueError(f"run={given} is the name of several runs in MLflow: give one by its id, of {ids}")
    return runs[0]


def _read(given: str, place: str, source: str, config: Mapping[str, str] | None = None) -> ComparedRun:
    try:
        content = storage.read_bytes(storage.join(place, METRICS), documents.MAX_BYTES)
        rows = storage.read_bytes(storage.join(place, PER_IMAGE), _MAX_ROWS_BYTES).decode()
    except FileNotFoundError:
        raise ValueError(
            f"run={given} has no results per image, no {PER_IMAGE}, in {source}: evaluate it again"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"run={given}: {PER_IMAGE} of {source} is corrupted ({error}): evaluate it again") from None
    name, fix = f"run={given}: {METRICS} of {source}", "evaluate it again"
    if not {"class_iou", "data_digest"} <= documents.parse(content, dict[str, Any], name, fix).keys():
        raise ValueError(f"{name} is not of a segmentation benchmark: give one that is")
    summary = documents.parse(content, SegmentationMetrics, name, fix)
    try:
        image_iou = _image_iou(rows)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"run={given}: {PER_IMAGE} of {source} is corrupted ({error!r}): {fix}") from None
    folder_name, step = given.rstrip("/").rpartition("/")[2], summary["step"]
    return ComparedRun(
        name=f"{folder_name}, step {step}" if step else folder_name,
        source=source,
        summary=summary,
        image_iou=image_iou,
        config=_config_of(given, summary) if config is None else config,
    )


def _image_iou(rows: str) -> dict[ImageKey, float]:
    found: dict[ImageKey, float] = {}
    counts: dict[tuple[str, str], int] = {}
    for row in csv.DictReader(io.StringIO(rows)):
        image = row["part"], row["sample_id"]
        counts[image] = counts.get(image, 0) + 1
        if row["miou"] != "-" and math.isfinite(float(row["miou"])):
            found[(*image, counts[image])] = float(row["miou"])
    return found


def _config_of(given: str, summary: Mapping[str, Any]) -> dict[str, str]:
    """Reads the training config from the run's folder or the evaluated checkpoint. Empty if neither exists, or if the
    checkpoint is in a bucket that is not the evaluation's: whoever wrote the evaluation may have named any."""
    if (description := RunFolder(given).read_description()) is not None:
        return {name: _plain(value) for name, value in flatten(description["config"]).items()}
    checkpoint = summary["checkpoint"]
    if "://" in checkpoint and checkpoint.split("/")[:3] != given.split("/")[:3]:
        return {}
    places = [checkpoint, RunFolder(checkpoint).checkpoint_uri(summary["step"])]
    for place in places:
        try:
            config = documents.read(storage.join(place, "state.json"), _WithConfig, "").get("config", {})
        except (OSError, ValueError):  # the checkpoint may have been deleted, or be on another machine
            continue
        return {name: _plain(value) for name, value in flatten(config).items()}
    return {}


def _plain(value: Any) -> str:
    """Converts a value to text. A tuple gives the same text as the list that JSON makes of it."""
    shown = json.dumps(value) if isinstance(value, (list, tuple)) else str(value)
    return shown.replace("(", "[").replace(",)", "]").replace(")", "]").replace("'", '"')


def check_comparable(given: Sequence[str], runs: Sequence[ComparedRun]) -> None:
    """Raises ValueError if the evaluations are not of the same images, or if one is given twice."""
    first, *others = runs
    for name, other in zip(given[1:], others, strict=True):
        for key in ("benchmark", "data_digest"):
            mine, theirs = first.summary[key], other.summary[key]
            if mine != theirs:
                raise ValueError(
                    f"runs: {given[0]} has {key}={mine}, {name} has {theirs}: give evaluations of the same images"
                )
        mine, theirs = list(first.summary["class_iou"]), list(other.summary["class_iou"])
        if sorted(mine) != sorted(theirs):
            raise ValueError(f"runs: {given[0]} has the parts {', '.join(mine)}, {name} has {', '.join(theirs)}")
        if not any(key in other.image_iou for key in first.image_iou):
            raise ValueError(f"runs: {given[0]} and {name} have no image in common: evaluate both on the same ones")
    sources = [run.source for run in runs]
    if twice := [source for source in sources if sources.count(source) > 1]:
        raise ValueError(f"runs: {twice[0]} is given twice: give different evaluations")
