"""Runs the whole chain in one command: makes the demo's data, pretrains on it, evaluates, and compares with baselines.

    groupvit demo [--out runs/demo] [--seeds 0 1 2] [--data auto]

The same command resumes: finished data and training are kept, and evaluation is repeated.
"""

import dataclasses
import os
import shlex
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch

from groupvit import checkpoint
from groupvit.config import to_dict
from groupvit.model import GroupViT
from pipelines import storage
from pipelines.curation.config import CurateConfig
from pipelines.curation.curate import curate
from pipelines.demo.generate import DemoDataConfig, demo_data
from pipelines.demo.memory import PeakMemory
from pipelines.demo.packages import PackagesUnavailable
from pipelines.evaluation.config import EvaluateConfig
from pipelines.evaluation.evaluate import evaluate
from pipelines.experiments.catalogue import demo as demo_experiment
from pipelines.experiments.config import ExperimentConfig
from pipelines.local.writable import check_writable
from pipelines.tracking.places import database_uri
from pipelines.training.pretrain import pretrain

DATA_SEED = 1
"""Seed of the scenes. The demo's settings were tuned on scenes with another seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Configures what the demo makes, and where."""

    out: str = "runs/demo"
    """Local folder for data, runs, the MLflow database and results."""
    store: str | None = None
    """Folder in an object store, s3://..., for all large files: raw shards (which are then curated like a download),
    data sets, checkpoints, MLflow's artifacts. None: they are in `out`, and the scenes are written as a data set."""
    data: Literal["auto", "stamps", "shapes"] = "auto"
    """`stamps`: real photo cut-outs on real photos, downloaded with apt. `shapes`: drawn, no download. `auto`: stamps
    if they can be downloaded, else shapes."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the models to train, one model each. The results are means over them."""
    num_steps: int | None = None
    """Number of optimiser steps per model. None: the experiment's, which take some minutes on 2 cores."""
    num_training_scenes: int = DemoDataConfig.num_training_scenes
    """Number of scenes to train on."""
    num_evaluation_scenes: int = DemoDataConfig.num_validation_scenes
    """Number of scenes of each validation part. Calibration uses three quarters as many."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: give one or more different numbers")
        if self.num_evaluation_scenes < 4:
            raise ValueError(f"num_evaluation_scenes={self.num_evaluation_scenes}: at least 4 are needed")


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Runs all steps. Returns the summary that `--json` prints. Raises ValueError if the user's input is invalid."""
    started = time.monotonic()
    out = Path(config.out).absolute()
    check_writable(str(out), "out")
    if config.store is not None:
        check_writable(config.store, "store")
    with PeakMemory() as memory:
        data = _make_data(config, storage.join(config.store or str(out), "data"))
        results = [_train_and_evaluate(config, data, seed, out) for seed in config.seeds]
        untrained = _evaluate_untrained(config, data, out)
    first = results[0]
    scores = [result["metrics"] for result in results]
    summary = {
        "data": data["kind"],
        "seeds": list(config.seeds),
        "seen_miou": _mean(scores, "seen/miou"),
        "unseen_miou": _mean(scores, "unseen/miou"),
        "seen_miou_by_seed": [round(score["seen/miou"], 2) for score in scores],
        "unseen_miou_by_seed": [round(score["unseen/miou"], 2) for score in scores],
        "untrained_miou": round(untrained["metrics"]["seen/miou"], 2),
        "all_background_miou": _mean(scores, "seen/all_background_miou"),
        "no_grouping_miou": _mean(scores, "seen/no_grouping_miou"),
        "oracle_miou": _mean(scores, "seen/oracle_miou"),
        "train_seconds": round(statistics.mean(result["train_seconds"] for result in results), 1),
        "images_per_second": round(statistics.mean(result["images_per_second"] for result in results), 1),
        "total_seconds": round(time.monotonic() - started, 1),
        "peak_rss_mb": memory.peak_mb,
        "mlflow_run_id": first["mlflow_run_id"],
        "checkpoint": first["checkpoint"],
        "pictures": first["pictures"],
    }
    print(_comparison(summary))
    print(f"\nPictures: {' '.join(first['pictures'])}")
    print(f"MLflow:   mlflow server --backend-store-uri {shlex.quote(_tracking_uri(out))} --host 127.0.0.1")
    return summary


def _tracking_uri(out: Path) -> str:
    return database_uri(f"{out}/mlflow.db")


def _make_data(config: DemoConfig, folder: str) -> dict[str, Any]:
    if config.data != "shapes":
        try:
            return _make_data_of("stamps", config, folder)
        except PackagesUnavailable as problem:
            if config.data == "stamps":
                raise
            print(f"demo: falling back to drawn shapes: {problem}", file=sys.stderr)
    return _make_data_of("shapes", config, folder)


def _make_data_of(kind: str, config: DemoConfig, folder: str) -> dict[str, Any]:
    out = storage.join(folder, kind)
    data = demo_data(kind, _data_config(config, out))
    if config.store is None:
        return data
    # Scenes share captions and backgrounds, which in a download would be boilerplate and near-duplicates.
    rules = CurateConfig(
        raw=(f"{kind}={data['raw']}",),
        out=storage.join(out, "train"),
        max_images_per_caption=None,
        near_duplicate_distance=None,
    )
    return data | {"train": curate(rules)["out"]}


def _data_config(config: DemoConfig, out: str) -> DemoDataConfig:
    return DemoDataConfig(
        out=out,
        raw=config.store is not None,
        num_training_scenes=config.num_training_scenes,
        num_calibration_scenes=config.num_evaluation_scenes * 3 // 4,
        num_validation_scenes=config.num_evaluation_scenes,
        seed=DATA_SEED,
    )


def _experiment(config: DemoConfig, data: dict[str, Any], seed: int, out: Path) -> ExperimentConfig:
    base = demo_experiment()
    num_steps = config.num_steps or base.training.num_steps
    # The words for the background are those of the training captions, for any data.
    segmentation = dataclasses.replace(base.segmentation, background_prompts=tuple(data["background_nouns"]))
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, sources=(data["train"],), seed=seed),
        optimizer=dataclasses.replace(base.optimizer, warmup_steps=min(base.optimizer.warmup_steps, num_steps // 2)),
        training=dataclasses.replace(
            base.training,
            seed=seed,
            num_steps=num_steps,
            runs_folder=config.store or str(out),
            run_name=f"{data['kind']}-seed-{seed}",
        ),
        tracking=dataclasses.replace(base.tracking, uri=_tracking_uri(out)),
        segmentation=segmentation,
    )


def _train_and_evaluate(config: DemoConfig, data: dict[str, Any], seed: int, out: Path) -> dict[str, Any]:
    experiment = _experiment(config, data, seed, out)
    trained = pretrain(experiment)
    folder = out / experiment.run_name / "evaluation"
    report = _evaluate(
        data,
        trained["checkpoint"],
        folder,
        mlflow_run=trained["mlflow_run_id"],
        tracking_uri=_tracking_uri(out),
    )
    pictures = [str(folder / f"examples_{part}.png") for part in ("seen", "unseen")]
    return {**trained, "metrics": report["metrics"], "pictures": pictures}


def _evaluate_untrained(config: DemoConfig, data: dict[str, Any], out: Path) -> dict[str, Any]:
    """Evaluates the same model with its initial weights, to show the chance level."""
    experiment = _experiment(config, data, config.seeds[0], out)
    folder = out / f"{data['kind']}-untrained"
    shutil.rmtree(folder, ignore_errors=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.training.seed)
        model = GroupViT(experiment.model)
    checkpoint.save(folder / "checkpoint", model, state={"step": 0, "config": to_dict(experiment)})
    return _evaluate(data, str(folder / "checkpoint"), folder / "evaluation")


def _evaluate(
    data: dict[str, Any],
    checkpoint_folder: str,
    out: Path,
    *,
    mlflow_run: str | None = None,
    tracking_uri: str | None = None,
) -> dict[str, Any]:
    return evaluate(
        EvaluateConfig(
            checkpoint=checkpoint_folder,
            root=data["validation"],
            calibration=data["calibration"],
            out=str(out),
            no_grouping=mlflow_run is not None,
            num_workers=os.cpu_count() or 1,
            mlflow_run=mlflow_run,
            tracking_uri=tracking_uri,
        )
    )


def _mean(scores: list[dict[str, float]], name: str) -> float:
    return round(statistics.mean(score[name] for score in scores), 2)


def _comparison(summary: dict[str, Any]) -> str:
    rows = (
        ("GroupViT, cut-outs seen in training", "seen_miou"),
        ("GroupViT, cut-outs never seen", "unseen_miou"),
        ("  best labels its groups allow (oracle)", "oracle_miou"),
        ("the same towers without grouping", "no_grouping_miou"),
        ("untrained", "untrained_miou"),
        ("everything background", "all_background_miou"),
    )
    lines = [f"{name:42} {summary[key]:5.1f} % mIoU" for name, key in rows]
    rate = f"trained in {summary['train_seconds']:.0f} s at {summary['images_per_second']:.0f} images/s"
    return "\n".join([*lines, f"{rate}, at most {summary['peak_rss_mb']} MB of memory"])
