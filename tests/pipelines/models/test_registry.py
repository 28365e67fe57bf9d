"""Models in MLflow, against a real server with SQLite behind it and artifacts through it."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from PIL import Image

from groupvit.checkpoint import load, load_state
from groupvit.checkpoint_files import MODEL_FILE, STATE_FILE
from groupvit.protocols import protocol_of
from groupvit.segmenter import Segmenter
from groupvit.tokenizer import Tokenizer
from pipelines.models.mlflow_model import input_example, requirements
from pipelines.models.registry import STEP_TAG, log_model_to_mlflow
from pipelines.tracking.runs import LICENSE_TAG
from tests.support.mlflow_server import MlflowServer
from tests.support.new_run import new_run
from tests.support.running_app import NOTICE

pytestmark = pytest.mark.timeout(600)  # the server needs seconds to start, or minutes on a machine that is busy

WORDS = ["dog", "boat"]

# Without this repository: neither on the path, nor by the finder of an editable install.
LOAD_AND_PREDICT = """
import json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path_hooks = [hook for hook in sys.path_hooks if "editable" not in getattr(hook, "__module__", "")]
for package in ("groupvit", "pipelines"):
    try:
        __import__(package)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{package} can be imported without the model")
import mlflow.pyfunc, pandas
uri, image, classes, params = sys.argv[1:]
model = mlflow.pyfunc.load_model(uri)
rows = pandas.DataFrame({"image": [open(image, "rb").read()], "classes": [classes]})
row = model.predict(rows, params=json.loads(params)).iloc[0]
open("labels.png", "wb").write(row.labels_png)
import groupvit
heavy = [name for name in ("ray", "pipelines", "timm", "transformers") if name in sys.modules]
print(json.dumps({"names": row.names, "shares": row.shares, "groupvit": groupvit.__file__, "heavy": heavy}))
"""


@contextlib.contextmanager
def tracking_at(uri: str) -> Iterator[None]:
    """The process's own tracking URI, for what has no other way to be told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)  # set_tracking_uri would set it for good
        yield


def segmenter(checkpoint: Path) -> Segmenter:
    model = load(checkpoint)
    return Segmenter(model, protocol_of("model", model, load_state(checkpoint)), Tokenizer())


def predict_elsewhere(server: MlflowServer, model: str, image: Path, folder: Path, **params: Any) -> dict[str, Any]:
    """What a process that has the server alone makes of the image; its labels.png is in the folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    arguments = (model, str(image), ",".join(WORDS), json.dumps(params))
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOAD_AND_PREDICT, *arguments],
        cwd=folder,
        env=environment | {"MLFLOW_TRACKING_URI": server.uri},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "params"), [("alias", {}), ("alias", {"background_threshold": 0.5}), ("run", {"background": False})]
)
def test_segments_as_the_segmenter_does_where_the_repository_is_not(
    server: MlflowServer, checkpoint: Path, image: Path, best: str, tmp_path: Path, by: str, params: dict[str, Any]
) -> None:
    uri = "models:/segmenter@best" if by == "alias" else f"runs:/{best}/model"
    answer = predict_elsewhere(server, uri, image, tmp_path, **params)
    expected = segmenter(checkpoint).segment(np.asarray(Image.open(image)), WORDS, **params)
    with Image.open(tmp_path / "labels.png") as labels:
        assert labels.mode == "P"
        np.testing.assert_array_equal(np.asarray(labels), expected.labels)
    assert len(np.unique(expected.labels)) > 1, "the picture tells nothing"
    assert answer["names"] == list(expected.names)
    assert answer["shares"] == list(expected.shares)
    assert "/code/groupvit/" in answer["groupvit"]
    assert answer["heavy"] == []


def test_model_holds_neither_optimizer_nor_pickles_nor_credentials(
    server: MlflowServer, best: str, tmp_path: Path
) -> None:
    client = MlflowClient(server.uri)
    version = client.get_model_version_by_alias("segmenter", "best")
    assert client.get_model_version_download_uri("segmenter", version.version).startswith("mlflow-artifacts:")
    with tracking_at(server.uri):
        folder = Path(download_artifacts("models:/segmenter@best", dst_path=str(tmp_path)))
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {f"artifacts/checkpoint/{name}" for name in ("model.safetensors", "state.json")} <= files
    assert {"served_model.py", "code/groupvit/bpe_simple_vocab_16e6.txt.gz"} <= files
    allowed = {".safetensors", ".json", ".py", ".gz", ".yaml", ".txt", ".LICENSE", ".typed", ""}
    assert {Path(file).suffix for file in files} <= allowed
    assert not [file for file in files if file.endswith("optimizer.pt") or "pipelines/" in file]
    texts = "".join((folder / file).read_text() for file in files if Path(file).suffix in (".json", ".yaml", ""))
    assert "hunter2" not in texts
    assert NOTICE in (folder / "MLmodel").read_text()
    assert (folder / "requirements.txt").read_text().split() == requirements()


def test_versions_tell_step_miou_licence_and_run(server: MlflowServer, best: str) -> None:
    client = MlflowClient(server.uri)
    version = client.get_model_version_by_alias("segmenter", "best")
    assert version.tags == {STEP_TAG: "7", LICENSE_TAG: NOTICE, "groupvit.seen/miou": "41.26"}
    assert version.run_id == best
    assert f"Licence of the weights: see the tag `{LICENSE_TAG}`" in (version.description or "")
    run = client.get_run(best)
    assert run.info.status == "RUNNING"
    assert mlflow.active_run() is None
    assert run.data.metrics == {"evaluation/seen/miou": 41.256, "evaluation/seen/crf_miou": 12.0}
    assert run.outputs is not None
    [output] = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert output.step == 7
    assert (model.name, model.status, model.tags[LICENSE_TAG]) == ("model", LoggedModelStatus.READY, NOTICE)
    assert {metric.key: (metric.value, metric.step) for metric in model.metrics or []} == {
        "evaluation/seen/miou": (41.256, 7),
        "evaluation/seen/crf_miou": (12.0, 7),
    }


@pytest.mark.parametrize("kind", ["server", "database"])
def test_same_step_is_registered_once_and_other_steps_are_kept(
    server: MlflowServer, checkpoint: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a database that is written to directly keeps artifacts
    uri = server.uri if kind == "server" else f"sqlite:///{tmp_path}/mlflow.db"
    run_id, client = new_run(uri), MlflowClient(uri)

    def log(step: int, miou: float) -> str:
        return log_model_to_mlflow(
            checkpoint,
            run_id=run_id,
            tracking_uri=uri,
            registered_name=f"by {kind}",
            alias="best",
            step=step,
            metrics={"seen/miou": miou},
        )

    assert [log(1, 30.0), log(2, 40.0), log(2, 40.0)] == [f"models:/by {kind}/{number}" for number in (1, 2, 2)]
    assert client.get_model_version_by_alias(f"by {kind}", "best").version in ("2", 2)  # a database gives a number
    versions = client.search_model_versions(f"name = 'by {kind}'")
    assert {str(version.version): version.tags[STEP_TAG] for version in versions} == {"1": "1", "2": "2"}
    run = client.get_run(run_id)
    assert run.outputs is not None
    assert sorted(output.step for output in run.outputs.model_outputs) == [1, 2]
    history = client.get_metric_history(run_id, "evaluation/seen/miou")
    assert [(point.step, point.value) for point in history] == [(1, 30.0), (2, 40.0)]
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    registered = {model.tags[STEP_TAG]: json.loads(model.tags["mlflow.modelVersions"]) for model in models}
    assert {step: [str(entry["version"]) for entry in entries] for step, entries in registered.items()} == {
        "1": ["1"],
        "2": ["2"],
    }

    log(1, 50.0)  # what was known already is the best again
    assert client.get_model_version_by_alias(f"by {kind}", "best").version in ("1", 1)
    assert client.get_model_version(f"by {kind}", "1").tags["groupvit.seen/miou"] == "50.00"


def test_a_model_that_was_not_uploaded_whole_is_made_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id, client = new_run(uri), MlflowClient(uri)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / STATE_FILE).write_bytes((checkpoint / STATE_FILE).read_bytes())
    (damaged / MODEL_FILE).write_bytes((checkpoint / MODEL_FILE).read_bytes()[:1000])
    with pytest.raises(ValueError, match="is corrupted"):
        log_model_to_mlflow(damaged, run_id=run_id, tracking_uri=uri, step=3)
    log_model_to_mlflow(checkpoint, run_id=run_id, tracking_uri=uri, step=3)
    models = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert sorted(model.status.value for model in models) == ["FAILED", "READY"]


@pytest.mark.parametrize("what", ["server", "run", "alias"])
def test_refusals_are_told_in_a_line(checkpoint: Path, tmp_path: Path, what: str) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db" if what != "server" else "nonsense://me:hunter2@host"
    with pytest.raises(ValueError, match="registered_name" if what == "alias" else "tracking_uri") as refused:
        log_model_to_mlflow(checkpoint, run_id="0" * 32, tracking_uri=uri, alias="best" if what == "alias" else None)
    assert "\n" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.fixture(scope="module")
def loaded(server: MlflowServer, best: str) -> Any:
    """The model in this process, where the repository's own package is imported already."""
    with tracking_at(server.uri):
        path = list(sys.path)
        model = mlflow.pyfunc.load_model("models:/segmenter@best")
        sys.path[:] = path
    return model


def test_example_is_segmented_also_as_a_list_of_dicts(loaded: Any) -> None:
    example, params = input_example()
    frame = loaded.predict(example, params=params)
    listed = loaded.predict(example.to_dict("records"), params=params)
    assert frame.names[0] == ["background", "ball", "grass", "sky"]
    assert sum(frame.shares[0]) == pytest.approx(1)
    assert frame.labels_png[0] == listed.labels_png[0]
    assert np.asarray(Image.open(io.BytesIO(frame.labels_png[0]))).shape == (64, 96)
    assert loaded.predict(example.head(0)).empty


@pytest.mark.parametrize(
    ("columns", "params", "message"),
    [
        ({"picture": [b""], "classes": ["dog"]}, {}, "missing inputs"),
        ({"image": [b""], "classes": [3]}, {}, "classes"),
        ({"image": [0.5], "classes": ["dog"]}, {}, "image"),
        ({"image": [b""], "classes": ["dog"]}, {"background_threshold": "low"}, "background_threshold"),
    ],
)
def test_signature_refuses_other_columns_and_types(
    loaded: Any, columns: dict[str, Any], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(MlflowException, match=message):
        loaded.predict(pd.DataFrame(columns), params=params)


def test_image_has_to_be_bytes(loaded: Any) -> None:
    with pytest.raises(ValueError, match="row 0: image is str: give the bytes of an image file"):
        loaded.predict(pd.DataFrame({"image": ["photo.jpg"], "classes": ["dog"]}))


@pytest.mark.parametrize(
    ("data", "classes", "params", "message"),
    [
        (b"no image", "dog", {}, "row 1: image: cannot be decoded: it is not a whole JPEG"),
        (None, "dog, Dog", {}, "row 1: classes has 'dog' and 'Dog', which are the same"),
        (None, ", ,", {}, "row 1: classes is empty"),
        (None, "dog", {"background_threshold": 2.0}, "row 0: background_threshold=2.0 is out of range"),
        (None, "dog", {"background": False, "background_threshold": 0.5}, "give one of them"),
    ],
)
def test_what_cannot_be_segmented_is_told_in_a_line(
    loaded: Any, image: Path, data: bytes | None, classes: str, params: dict[str, Any], message: str
) -> None:
    good = image.read_bytes()
    rows = pd.DataFrame({"image": [good, data or good], "classes": ["dog", classes]})
    with pytest.raises(ValueError, match=message) as refused:
        loaded.predict(rows, params=params)
    assert "\n" not in str(refused.value)
