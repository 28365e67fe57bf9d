"""Finds the checkpoint a command was given: its folder or a run's (then the newest), on disk or in object storage."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from groupvit.checkpoint import MODEL_FILE, STATE_FILE
from groupvit.interop.hugging_face import CONFIG_FILE
from pipelines import storage
from pipelines.runs.folder import RunFolder


def newest_checkpoint(uri: str) -> str:
    """The newest checkpoint of a run, or the URI itself, which then ought to be a checkpoint."""
    run = RunFolder(uri)
    steps = run.checkpoint_steps()
    return run.checkpoint_uri(steps[-1]) if steps else uri


@contextmanager
def local_checkpoint(uri: str) -> Iterator[Path]:
    """A folder on this machine with the model and the state of the checkpoint, for the time of the context.

    Raises ValueError when there is none.
    """
    uri = newest_checkpoint(uri)
    if "://" not in uri:
        if not (Path(uri) / STATE_FILE).is_file():
            foreign = Path(uri).is_file() or (Path(uri) / CONFIG_FILE).is_file()
            advice = f"; groupvit import-weights {uri} --out DIR makes a checkpoint of it" if foreign else ""
            raise ValueError(f"{uri} is neither a checkpoint nor a run with one: it has no {STATE_FILE}{advice}")
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in (MODEL_FILE, STATE_FILE):
            try:
                storage.copy(storage.join(uri, name), f"{temporary}/{name}")
            except FileNotFoundError:
                raise ValueError(f"{uri} is neither a checkpoint nor a run with one: it has no {name}") from None
        yield Path(temporary)
