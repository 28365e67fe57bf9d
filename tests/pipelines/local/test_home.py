from pathlib import Path

import pytest

from pipelines.local.home import cache_folder, provide_ray_token


def test_a_home_that_can_be_written_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    environment: dict[str, str] = {}
    provide_ray_token(environment)
    assert environment == {}
    assert cache_folder() == tmp_path / ".cache" / "groupvit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere" / "groupvit"
    assert list(tmp_path.iterdir()) == []


def test_without_such_a_home_there_is_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc")  # read-only, also for root
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder().parent == tmp_path
    tokens = []
    for environment in ({}, {}):
        provide_ray_token(environment)
        tokens.append(environment["RAY_AUTH_TOKEN"])
    assert len(set(tokens)) == 2 and all(len(token) == 64 for token in tokens)


@pytest.mark.parametrize("name", ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_what_the_user_set_for_ray_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc")
    environment = {name: "x"}
    provide_ray_token(environment)
    assert environment == {name: "x"}
