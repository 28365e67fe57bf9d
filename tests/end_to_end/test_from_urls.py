"""From a list of URLs to mIoU, by the commands a user types, on an object store."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines import storage
from pipelines.dataset.format import open_dataset
from tests.support.image_server import PLANTED, image_server

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

CURATION_REASONS = {
    "duplicate": "duplicate",
    "near_duplicate": "near_duplicate",
    "small": "image_too_small",
    "huge_header": "image_too_many_pixels",
}
"""Planted cases that arrive, and why `curate` drops them."""


def groupvit(*arguments: str | Path) -> dict[str, Any]:
    """What a command answers with `--json`."""
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments), "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def test_from_urls_to_miou(bucket: str, tmp_path: Path) -> None:
    with image_server() as web:
        urls = web.write_list(tmp_path / "cc3m.tsv")
        limits = ("--allow-hosts", web.host, "--timeout", "2", "--max-seconds", "4", "--max-bytes", "2000000")
        downloaded = groupvit("download", "--url-list", urls, "--preset", "cc3m", "--out", f"{bucket}/raw", *limits)
        planted = web.rows
    assert downloaded["failures"] == web.reasons

    curated = groupvit("curate", "--raw", f"web={bucket}/raw", "--out", f"{bucket}/train")
    arrived = {CURATION_REASONS[case]: count for case, (count, _) in PLANTED.items() if case in CURATION_REASONS}
    expected = {f"download_{reason}": count for reason, count in web.reasons.items()} | arrived
    assert curated["drops"] == expected
    assert curated["num_rows"] == len(planted)
    assert curated["num_samples"] == len(planted) - sum(expected.values())

    # Every row that was kept can be traced to where it came from.
    dataset = open_dataset(f"{bucket}/train")
    kept: Counter[str] = Counter()
    for name in dataset.files:
        with storage.open_parquet(storage.join(dataset.uri, name)) as file:
            kept.update(file.read(columns=["url"]).column("url").to_pylist())
    cases = {row.url: row.case for row in planted}
    assert set(kept.values()) == {1}
    assert {cases[url] for url in kept} <= {"good", "redirect_good", "duplicate", "near_duplicate"}

    scenes = groupvit(
        *("demo-data", "shapes", "--out", f"{bucket}/scenes", "--num-training-scenes", "50"),
        *("--num-calibration-scenes", "4", "--num-validation-scenes", "4"),
    )
    trained = groupvit(
        *("pretrain", "debug", "--data", f"web={bucket}/train:1", "--data", f"drawn={scenes['train']}:3"),
        *("--training.runs-folder", f"{bucket}/runs", "--training.num-steps", "12", "--training.num-workers", "2"),
        *("--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db"),
    )
    assert trained["checkpoint"].startswith(f"{bucket}/runs/debug/checkpoints/")
    report = groupvit(
        *("evaluate", "--checkpoint", f"{bucket}/runs/debug", "--root", scenes["validation"]),
        *("--calibration", scenes["calibration"], "--out", tmp_path / "evaluation"),
        *("--mlflow-run", trained["mlflow_run_id"], "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"),
    )
    assert 0 < report["metrics"]["seen/miou"] < 100
    artifacts = storage.resolve(f"{bucket}/runs/mlflow-artifacts")
    assert artifacts[0].get_file_info(artifacts[1]).type.name == "Directory"
