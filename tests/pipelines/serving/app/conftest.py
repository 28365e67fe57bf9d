"""One server for all tests of the page."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running_app import blocks, running, save_checkpoint


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "small")


@pytest.fixture(scope="package")
def address(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a page with two examples, like http://127.0.0.1:12345/."""
    folder = tmp_path_factory.mktemp("examples")
    blocks(seed=4).save(folder / "<b>first.png")
    blocks(128, 64, seed=5).save(folder / "second.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not shown")
    with running("--checkpoint", str(checkpoint), "--examples", str(folder), "--max-upload-megabytes", "2") as (url, _):
        yield url
