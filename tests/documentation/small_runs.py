"""How each documented command is run here: as it is written, with flags after it that make it small.

A command that a page shows must be in HOW. To add one, give it a function from its arguments to those that follow
them; or, in NOT_RUN, the reason why it cannot be run here, and it is then parsed only.
"""

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from groupvit.config import to_dict
from pipelines import storage
from pipelines.cli import pretrain_config
from pipelines.config import flatten
from pipelines.experiments import debug
from tests.documentation.stand_ins import SCENES

NOT_RUN: Mapping[str, str] = {
    "groupvit app": "it serves until Ctrl-C: tests/pipelines/app starts it, and visits its page in a browser",
}
"""Beginnings of lines that are not run, and why not."""

INSTEAD: Mapping[str, str] = {
    "demo-data stamps": "demo-data shapes",  # the cut-outs come from Debian's mirrors
    "http://localhost:5000": "{tracking_uri}",
}
"""What on a line stands for something that is not here, and what takes its place."""


def no_more(arguments: Sequence[str]) -> list[str]:
    return []


def small_training(arguments: Sequence[str]) -> list[str]:
    """Two steps of a model and batches as small as `debug`'s; another run name where the run's is taken."""
    asked, small = pretrain_config(arguments), debug()
    batch = {"num_steps": 2, "global_batch_size": 16, "num_workers": 1, "cpus_per_worker": 1, "device": "auto"}
    wanted = dataclasses.replace(
        asked,
        model=small.model,
        optimizer=dataclasses.replace(asked.optimizer, warmup_steps=0),
        ingest=dataclasses.replace(asked.ingest, slice_size=16, window_size=32),
        training=dataclasses.replace(asked.training, **batch, precision="float32", log_every_n_steps=1),
        tracking=dataclasses.replace(asked.tracking, system_metrics_every_n_seconds=None),
    )
    before, after = flatten(to_dict(asked)), flatten(to_dict(wanted))
    flags = [word for name, value in after.items() if value != before[name] for word in _flag(name, value)]
    name, number = asked.run_name, 2
    while storage.exists(storage.join(asked.training.runs_folder, name)):
        name, number = f"{asked.run_name}-{number}", number + 1
    return flags if name == asked.run_name else [*flags, "--training.run-name", name]


def measured_run(arguments: Sequence[str]) -> list[str]:
    """A run of the model at full size: one that was trained here is of a small one."""
    return ["--from-run", "runs/measured"] if "--from-run" in arguments else []


def _flag(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, (tuple, list)) else [value]
    return [f"--{name.replace('_', '-')}", *map(str, values)]


HOW: Mapping[str, Callable[[Sequence[str]], list[str]]] = {
    "demo-data": lambda arguments: [*SCENES, "--num-processes", "1"],
    "download": lambda arguments: ["--allow-private-addresses", "--num-processes", "1", "--num-threads", "8"],
    "curate": lambda arguments: ["--num-workers", "1"],
    "inspect": no_more,
    "pretrain": small_training,
    "evaluate": lambda arguments: ["--num-workers", "1"],
    "segment": no_more,
    "import-weights": no_more,
    "export": no_more,
    "register": no_more,
    "app": no_more,
    "cost": measured_run,
    "prepare-context": no_more,
}


def words_of(line: str, tracking_uri: str) -> list[str]:
    """The arguments of `groupvit` on a line, with what is not here replaced."""
    for written, replacement in INSTEAD.items():
        line = line.replace(written, replacement.format(tracking_uri=tracking_uri))
    return shlex.split(line)[1:]


def places_read(words: Sequence[str]) -> list[str]:
    """What on a line may be a path that is read: every word but those after flags that say where to write."""
    written_to = ("--out", "--training.runs-folder")
    words = [word for before, word in zip(["", *words], words, strict=False) if before not in written_to]
    places = []
    for word in words:
        bare = word.rpartition("=")[2] if "://" in word or "=" in word else word
        places.append(bare.rsplit(":", 1)[0] if bare.rpartition(":")[2].replace(".", "").isdigit() else bare)
    return places
