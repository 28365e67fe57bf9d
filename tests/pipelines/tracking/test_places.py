"""Places whose names mean something in a URI. SQLAlchemy and MLflow say what they take the URIs for."""

from pathlib import Path

import pytest
from mlflow.artifacts import download_artifacts
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db.utils import create_sqlalchemy_engine_with_retry
from sqlalchemy.engine import make_url

from pipelines.tracking.places import artifacts_beside, artifacts_in, check_database, database_path, database_uri

NAMES = ["runs", "a b", "rüns", "runs%41?b#c", "50%", "a+b&c=d@e:1"]


@pytest.mark.parametrize("name", NAMES)
def test_the_database_is_the_file_that_was_meant(tmp_path: Path, name: str) -> None:
    path = f"{tmp_path}/{name}/mlflow.db"
    uri = database_uri(path)
    assert make_url(uri).database == path
    assert make_url(uri).get_backend_name() == "sqlite"
    assert not make_url(uri).query
    assert database_path(uri) == path


def test_mlflow_makes_no_folder_of_a_quoted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs%41?b").mkdir()
    create_sqlalchemy_engine_with_retry(database_uri(f"{tmp_path}/runs%41?b/mlflow.db")).dispose()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["runs%41?b", "runs%41?b/mlflow.db"]


@pytest.mark.parametrize("name", NAMES)
def test_artifacts_lie_beside_the_database(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (tmp_path / "x.txt").write_text("x")
    place = artifacts_in(str(folder))
    assert artifacts_beside(database_uri(f"{folder}/mlflow.db")) == place
    get_artifact_repository(place).log_artifact(str(tmp_path / "x.txt"))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [name]
    assert (folder / "mlflow-artifacts" / "x.txt").read_text() == "x"
    assert Path(download_artifacts(f"{place}/x.txt")).read_text() == "x"


def test_other_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert artifacts_in("s3://bucket/runs%41") == "s3://bucket/runs%41/mlflow-artifacts"
    assert artifacts_beside("http://localhost:5000") is None
    assert database_path("sqlite://") is None and database_path("postgresql://a/b") is None
    monkeypatch.chdir(tmp_path)
    assert database_path("sqlite:///runs/a%20b.db?mode=ro") == f"{tmp_path}/runs/a b.db"


def test_a_database_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for uri in (None, "http://localhost:5000", database_uri(f"{tmp_path}/new/mlflow.db")):
        check_database(uri, "tracking.uri")
    with pytest.raises(
        ValueError, match=r"tracking.uri=sqlite:///.*/file/mlflow.db cannot be written: .*file is a file"
    ):
        check_database(f"sqlite:///{tmp_path}/file/mlflow.db", "tracking.uri")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
