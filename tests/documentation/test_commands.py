"""Every `groupvit` command that a page shows is run, as it is written, in a folder that has what it reads, small."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.cli.main import main
from pipelines.cli.requests import dry_run_request
from tests.support.image_server import image_server
from tests.support.local_cluster import local_cluster
from tests.support.object_store import ObjectStore
from tests.support.pages import PAGES, lines_of, name_of
from tests.support.small_runs import HOW, NOT_RUN, places_read, words_of
from tests.support.stand_ins import StandIns

COMMANDS = {page: [line for line in lines_of(page) if line.startswith("groupvit ")] for page in PAGES}


def lines_to_run(page: Path) -> list[str]:
    """The page's commands but those that an earlier page has, too."""
    earlier = {line for other in PAGES[: PAGES.index(page)] for line in COMMANDS[other]}
    lines = [line for line in dict.fromkeys(COMMANDS[page]) if line not in earlier]
    return [line for line in lines if not line.startswith(tuple(NOT_RUN))]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory, object_store: ObjectStore) -> Iterator[StandIns]:
    """With a Ray cluster and an MLflow database that all commands share, and the object store in the environment."""
    folder = tmp_path_factory.mktemp("stand-ins")
    with pytest.MonkeyPatch.context() as patch, image_server(num_good=24) as site:
        for name, value in object_store.environment.items():
            patch.setenv(name, value)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("RAY_ADDRESS", raising=False)
        with local_cluster(4):
            yield StandIns(folder, site)


@pytest.mark.documentation
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if lines_to_run(page)], ids=name_of)
def test_the_commands_of_a_page_run(
    page: Path,
    stand_ins: StandIns,
    object_store: ObjectStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    object_store.create_bucket("bucket")
    for folder in storage.list_folders("s3://bucket"):  # of the page before
        storage.remove_folder(f"s3://bucket/{folder}")
    for line in lines_to_run(page):
        words = words_of(line, os.environ["MLFLOW_TRACKING_URI"])
        read = dry_run_request(words[1:])[0].data.sources if words[0] == "pretrain" else ()
        words += HOW[words[0]](words[1:])
        for place in [*read, *places_read(words)]:
            stand_ins.provide(place)
        code = main(words)
        printed = capsys.readouterr()
        assert code == 0, f"{name_of(page)} shows a command that fails here:\n  {line}\n{printed.err}"


def test_it_is_known_how_to_run_every_command() -> None:
    unknown = {
        line: name_of(page)
        for page, lines in COMMANDS.items()
        for line in lines
        if line.split()[1] not in HOW and not line.startswith(tuple(NOT_RUN))
    }
    assert not unknown, (
        "these commands of pages are not run by any test: add how to HOW in tests/support/small_runs.py (flags "
        "that make them small) and what they read to STAND_INS in stand_ins.py, or the reason why not to NOT_RUN"
    )
