"""The package that a job takes to the cluster."""

import json
from pathlib import Path

import pytest

from pipelines.cluster.package import ENVIRONMENT_FILE, PACKAGES, environment, job_package
from tests.support.planted_secrets import IN_FILES, PLANTED, files_below, found, plant_in_home


def test_only_variables_that_were_named_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_in_home(tmp_path)
    for name, value in {**PLANTED, "HOME": str(tmp_path), "ASKED_FOR": "planted-and-named"}.items():
        monkeypatch.setenv(name, value)
    with job_package(code=True, variables=environment(["ASKED_FOR"]), max_bytes=50e6) as folder:
        assert folder is not None
        contents = files_below(folder)
        assert {path.name for path in folder.iterdir()} == {*PACKAGES, ENVIRONMENT_FILE}
        file = folder / ENVIRONMENT_FILE
        assert file.stat().st_mode & 0o777 == 0o600
        assert set(json.loads(file.read_text())) == {"ASKED_FOR", "GROUPVIT_CODE_VERSION"}
        assert found(["planted-and-named"], contents) == [("planted-and-named", str(file))]
        assert found([*PLANTED.values(), *IN_FILES.values()], contents) == []
    assert not folder.exists()
