"""Finds the checkpoint that a command is given: its own folder, or a run's folder (then the newest checkpoint in it).

Both may be on disk or in object storage.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from groupvit.checkpoint_files import MODEL_FILE, STATE_FILE
from groupvit.interop.hugging_face import CONFIG_FILE
from pipelines import storage
from pipelines.runs.folder import RunFolder, downloaded


def newest_checkpoint(uri: str) -> str:
    """Returns the newest checkpoint of a run. A URI without checkpoints is returned as it is: it should be one."""
    run = RunFolder(uri)
    steps = run.checkpoint_steps()
    return run.checkpoint_uri(steps[-1]) if steps else uri


@contextmanager
def local_checkpoint(uri: str) -> Iterator[Path]:
    """Yields a folder on this machine with the model and the state of the checkpoint. It is valid inside the context.

    Raises ValueError if there is no checkpoint.
    """
    uri = newest_checkpoint(uri)
    if "://" not in uri:
        if not (Path(uri) / STATE_FILE).is_file():
            foreign = Path(uri).is_file() or (Path(uri) / CONFIG_FILE).is_file()
            advice = f"; groupvit import-weights {uri} --out DIR makes a checkpoint of it" if foreign else ""
            raise ValueError(f"{uri} is neither a checkpoint nor a run with one: it has no {STATE_FILE}{advice}")
        yield Path(uri)
        return
    needed = (MODEL_FILE, STATE_FILE)
    if missing := sorted(set(needed) - set(storage.list_files(uri))):
        storage.check_bucket(uri)
        raise ValueError(f"{uri} is neither a checkpoint nor a run with one: it has no {missing[0]}")
    with downloaded(uri, needed) as folder:
        yield folder
