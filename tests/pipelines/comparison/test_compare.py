"""Evaluations side by side: statistics computed again by other means, refusals in one line, a real MLflow server."""

import csv
import itertools
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from scipy import stats

from pipelines.cli.main import main
from pipelines.comparison.significance import holm, paired_test, welch_p_value
from tests.support.evaluation_folder import CLASSES, write_evaluation
from tests.support.mlflow_server import MlflowServer

NUM_IMAGES = 120


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def image_iou(seed: int, gain: float = 0.0) -> dict[str, list[float]]:
    """Images are hard or easy for every model, models differ a little on each; `gain` is on the part `unseen`."""
    hardness, noise = np.random.default_rng(99), np.random.default_rng(seed)
    parts = {}
    for part in ("seen", "unseen"):
        base = hardness.uniform(0.1, 0.7, NUM_IMAGES)
        values = base + noise.normal(gain * (part == "unseen"), 0.05, NUM_IMAGES)
        parts[part] = [round(float(value), 4) for value in np.clip(values, 0, 1)]
    return parts


def compare(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["compare", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert main(["compare", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("groupvit: error: ") and error.count("\n") == 1
    return error


def test_differences_and_intervals_are_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_evaluation(tmp_path / "a", image_iou(1), seed=1)
    b = write_evaluation(tmp_path / "b", image_iou(2, gain=0.03), seed=2, threshold=0.6)
    found = compare(capsys, a, b, "--out", tmp_path / "out")
    seen, unseen = found["differences"]
    for result, gain in ((seen, 0.0), (unseen, 0.03)):
        part = result["part"]
        differences = 100 * (np.array(image_iou(2, gain)[part]) - np.array(image_iou(1)[part]))
        assert result["num_pairs"] == NUM_IMAGES
        assert result["mean"] == pytest.approx(differences.mean(), abs=0.01)
        assert result["effect"] == pytest.approx(differences.mean() / differences.std(ddof=1), abs=0.01)
        assert result["num_better"] == (differences > 0.004).sum()
        # The t-test is another road to the same: at 120 images the two hardly differ.
        p_value = float(np.asarray(stats.ttest_1samp(differences, 0))[1])
        assert result["p_value"] == pytest.approx(p_value, abs=0.02)
        half = 1.96 * differences.std(ddof=1) / np.sqrt(NUM_IMAGES)
        assert [result["low"], result["high"]] == pytest.approx(
            [differences.mean() - half, differences.mean() + half], abs=0.2
        )
    assert seen["may_be_chance"] and "the difference may be chance" in seen["says"]
    assert not unseen["may_be_chance"] and "B is better, by more than chance" in unseen["says"]
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (a, b)]
    assert [run["metrics"] for run in found["runs"]] == [each["metrics"] for each in metrics]
    assert found["class_iou"]["seen"]["dog"] == [each["class_iou"]["seen"]["dog"] for each in metrics]
    assert found["settings"]["background_thresholds.groups"] == ["0.5", "0.6"]
    assert "about seeds" in found["caveat"]

    assert json.loads((tmp_path / "out/comparison.json").read_text()) == found
    rows = list(csv.reader((tmp_path / "out/class_iou_seen.csv").open()))
    assert rows[0] == ["IoU, seen", "A", "B", "B - A"] and {row[0] for row in rows[1:]} == set(CLASSES)
    gaps = [abs(float(row[3])) for row in rows[1:]]
    assert gaps == sorted(gaps, reverse=True)
    for name in ("differences", "classes"):
        with Image.open(tmp_path / f"out/{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5


def test_permutations_are_those_of_the_definition() -> None:
    differences = np.array([3.0, -1.0, 2.5, 0.5, 4.0, 1.0, -0.2, 2.0])
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    means = (signs * differences).mean(axis=1)
    expected = (np.abs(means) >= abs(differences.mean()) - 1e-12).mean()
    assert paired_test(differences).p_value == pytest.approx(expected)
    assert paired_test(-differences).p_value == pytest.approx(expected)
    assert paired_test(differences) == paired_test(differences.copy()), "the same for the same differences"
    assert paired_test(np.zeros(5)).p_value == paired_test(np.ones(1)).p_value == 1.0


def test_holm_is_that_of_the_paper() -> None:
    # Step down: the smallest times m, the next times m - 1, …, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_seeds_that_nearly_agree_are_compared_without_a_warning() -> None:
    """Scores of a sweep whose models learnt nothing."""
    nearly = [6.087945087139423, 6.087945087139425, 6.087945087139424]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p_value = welch_p_value([10.3, 10.49, 12.88], nearly)
    assert p_value is not None and 0.01 < p_value < 0.05
    assert welch_p_value(nearly[:1], nearly) is None


def test_a_pair_that_does_not_differ_is_seldom_called_different() -> None:
    rng = np.random.default_rng(0)
    called = sum(paired_test(rng.normal(0, 1, 20)).p_value < 0.05 for _ in range(40))
    assert called <= 7  # 2 expected; always the same draws


def test_three_runs_are_compared_each_with_each_and_corrected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write_evaluation(tmp_path / f"m{seed}", image_iou(seed, gain=0.01 * seed)) for seed in range(3)]
    found = compare(capsys, *folders)
    pairs = [(each["part"], each["first"], each["second"]) for each in found["differences"]]
    assert pairs == [(part, *pair) for part in ("seen", "unseen") for pair in itertools.combinations("ABC", 2)]
    raw = [each["p_value"] for each in found["differences"]]
    assert [each["p_value_corrected"] for each in found["differences"]] == pytest.approx(holm(raw))
    assert "mlflow_run" not in found


def test_images_are_matched_by_id_not_by_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_evaluation(tmp_path / "a", {"seen": [0.1, 0.2, 0.3, 0.4]})
    b = write_evaluation(tmp_path / "b", {"seen": [0.2, 0.3, 0.4, float("nan")]})
    header, *rows = (b / "per_image.csv").read_text().splitlines()
    (b / "per_image.csv").write_text("\n".join([header, *reversed(rows)]) + "\n")
    [result] = compare(capsys, a, b)["differences"]
    assert (result["num_pairs"], result["mean"], result["num_better"]) == (3, pytest.approx(10), 3)


def test_equal_models_are_said_to_be_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_evaluation(tmp_path / "a", image_iou(1))
    b = write_evaluation(tmp_path / "b", image_iou(1))
    for result in compare(capsys, a, b)["differences"]:
        assert result["may_be_chance"] and "are the same on each of 120 images" in result["says"]


def test_a_run_folder_gives_its_latest_evaluation_or_that_of_a_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rate in (("one", 0.1), ("two", 0.2)):
        for step in (100, 200):
            folder = tmp_path / name / f"evaluation/step-{step:08d}"
            write_evaluation(folder, image_iou(step + len(name)), step=step)
        config = {"optimizer": {"learning_rate": rate}, "training": {"run_name": name, "num_steps": 200}}
        description = {"job_id": name, "fixed": {"ingest.slice_size": 4}, "config": config}
        (tmp_path / name / "run.json").write_text(json.dumps(description))
    found = compare(capsys, tmp_path / "one", tmp_path / "two")
    assert [run["name"] for run in found["runs"]] == ["one, step 200", "two, step 200"]
    assert found["settings"] == {"optimizer.learning_rate": ["0.1", "0.2"]}
    found = compare(capsys, tmp_path / "one", tmp_path / "two", "--step", 100)
    assert [run["name"] for run in found["runs"]] == ["one, step 100", "two, step 100"]
    assert "no evaluation of step=7: it has 100, 200" in refusal(
        capsys, tmp_path / "one", tmp_path / "two", "--step", 7
    )
    steps = [tmp_path / "one/evaluation" / name for name in ("step-00000100", "step-00000200")]
    assert compare(capsys, *steps)["settings"]["step"] == ["100", "200"]


def test_evaluations_in_object_storage(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines import storage

    for name in ("a", "b"):
        folder = write_evaluation(tmp_path / name, image_iou(len(name)))
        for file in folder.iterdir():
            storage.copy(str(file), f"{bucket}/{name}/{file.name}")
    found = compare(capsys, f"{bucket}/a", f"{bucket}/b", "--out", f"{bucket}/comparison")
    assert json.loads(storage.read_bytes(f"{bucket}/comparison/comparison.json")) == found


def test_what_does_not_compare_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_evaluation(tmp_path / "a", image_iou(1))
    assert "give 2 to 8 evaluations" in refusal(capsys, a)
    assert "give 2 to 8 evaluations" in refusal(capsys)
    assert "is given twice" in refusal(capsys, a, f"{a}/")
    (tmp_path / "link").symlink_to(a)
    assert "is given twice" in refusal(capsys, a, tmp_path / "link")
    other = write_evaluation(tmp_path / "digest", image_iou(1), digest="e" * 64)
    assert f"{other} has {'e' * 64}: give evaluations of the same images" in refusal(capsys, a, other)
    other = write_evaluation(tmp_path / "benchmark", image_iou(1), benchmark="voc21")
    assert "has benchmark=scenes" in refusal(capsys, a, other)
    other = write_evaluation(tmp_path / "parts", {"seen": image_iou(1)["seen"]})
    assert "has the parts seen, unseen" in refusal(capsys, a, other)
    shutil.copytree(a, tmp_path / "bare")
    (tmp_path / "bare/per_image.csv").unlink()
    assert "no results per image" in refusal(capsys, a, tmp_path / "bare")
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet/metrics.json").write_text('{"metrics": {"top1": 3}}')
    (tmp_path / "imagenet/per_image.csv").write_text("")
    assert "is not of a segmentation benchmark" in refusal(capsys, a, tmp_path / "imagenet")
    (tmp_path / "imagenet/metrics.json").write_text("{")
    assert "is corrupted" in refusal(capsys, a, tmp_path / "imagenet")
    (tmp_path / "empty").mkdir()
    assert "holds no evaluation" in refusal(capsys, a, tmp_path / "empty")
    assert "holds no evaluation" in refusal(capsys, a, a / "metrics.json")
    assert "does not exist" in refusal(capsys, a, tmp_path / "nowhere")
    assert "MLFLOW_TRACKING_URI is not set" in refusal(capsys, a, "some-run")
    assert "MLFLOW_TRACKING_URI is not set" in refusal(capsys, a, a / ".." / "b", "--mlflow-run", "0" * 32)
    assert "did you mean --step" in refusal(capsys, a, tmp_path / "bare", "--stepp", 3).lower()
    for name in ("voc21", "voc20"):
        write_evaluation(tmp_path / "all" / name, image_iou(1), benchmark=name)
    assert "several evaluations: give --benchmark" in refusal(capsys, tmp_path / "all", a)


@pytest.mark.timeout(600)  # the server needs seconds to start, or minutes on a machine that is busy
def test_runs_of_mlflow_are_compared_and_the_comparison_is_logged_once(
    server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    client = MlflowClient(server.uri)
    experiment = client.create_experiment("trainings")
    ids = []
    for name, rate, gain in (("soft", 0.1, 0.0), ("hard", 0.2, 0.05)):
        run_id = client.create_run(experiment, run_name=name).info.run_id
        client.log_param(run_id, "optimizer.learning_rate", rate)
        for step in (100, 200):
            folder = write_evaluation(tmp_path / f"{name}-{step}", image_iou(step + len(ids), gain), step=step)
            client.log_artifacts(run_id, str(folder), f"evaluation/step-{step:08d}")
        ids.append(run_id)
    asked = ("--tracking-uri", server.uri)
    found = compare(capsys, "soft", ids[1], *asked)
    assert [run["name"] for run in found["runs"]] == ["soft, step 200", "hard, step 200"]
    assert found["settings"]["optimizer.learning_rate"] == ["0.1", "0.2"]
    unseen = found["differences"][1]
    assert not unseen["may_be_chance"]
    again = compare(capsys, ids[0], "hard", *asked)
    assert again["mlflow_run"] == found["mlflow_run"] not in ids
    run = client.get_run(found["mlflow_run"])
    assert run.info.run_name == "compare soft, step 200 vs hard, step 200" and run.info.status == "FINISHED"
    assert run.data.metrics["comparison/unseen/B-A"] == pytest.approx(unseen["mean"])
    assert unseen["says"] in run.data.tags["mlflow.note.content"]
    files = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, "comparison")}
    assert {"classes.png", "differences.png", "comparison.json", "metrics_seen.json"} <= files
    target = client.download_artifacts(run.info.run_id, "comparison/class_iou_seen.json", str(tmp_path))
    logged = json.loads(Path(target).read_text())
    assert logged["columns"] == ["IoU, seen", "A", "B", "B - A"] and len(logged["data"]) == len(CLASSES)

    # A folder beside a run of MLflow; into a run that is given; and not at all.
    found = compare(capsys, tmp_path / "soft-100", "hard", "--step", 100, "--mlflow-run", ids[0], *asked)
    assert found["mlflow_run"] == ids[0] and client.list_artifacts(ids[0], "comparison")
    assert "mlflow_run" not in compare(capsys, "soft", "hard", "--no-log", *asked)

    client.create_run(experiment, run_name="soft")
    bare = client.create_run(experiment, run_name="bare").info.run_id
    assert "is the name of several runs" in refusal(capsys, "soft", "hard", *asked)
    assert "holds no evaluation" in refusal(capsys, bare, "hard", *asked)
    assert "nor the id or name of a run" in refusal(capsys, "nobody", "hard", *asked)
    assert "has no run of this id" in refusal(capsys, "0" * 32, "hard", *asked)
    assert "is given twice" in refusal(capsys, "hard", ids[1], *asked)
    message = refusal(capsys, "soft", "hard", "--tracking-uri", "http://127.0.0.1:9")
    assert "tracking_uri=http://127.0.0.1:9" in message
