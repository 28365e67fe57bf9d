"""How each documented command is run here: as it is written, with flags after it that make it small.

A command that a page shows must be in HOW. To add one, give it a function from its arguments to those that follow
them; or, in NOT_RUN, the reason why it cannot be run here, and it is then parsed only.
"""

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from groupvit.config import flatten, to_dict
from pipelines import storage
from pipelines.cli.requests import dry_run_request, sweep_request
from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import ExperimentConfig
from tests.support.stand_ins import SCENES

NOT_RUN: Mapping[str, str] = {
    "groupvit app": "it serves until Ctrl-C: tests/pipelines/serving/app starts it, and visits its page in a browser",
    "groupvit compare demo-soft": "it needs a server with those runs: "
    "tests/pipelines/comparison/test_compare.py has one",
    "groupvit doctor --cluster": "it needs a cluster at that address: tests/pipelines/doctor starts one",
    "groupvit forget": "it needs a run with its data: tests/pipelines/removal has one",
    "groupvit inspect-step": "it needs a run with its data: tests/pipelines/training/test_inspect_step.py has one",
    "groupvit submit": "it needs a cluster with a job server, or the user's own files beside the cluster file: "
    "tests/end_to_end/test_cluster.py and tests/pipelines/cluster/test_file.py have them",
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
    """Two steps, or all if some are amended, of a model and batches as small as `debug`'s; another run name where the
    run's is taken."""
    asked, _ = dry_run_request(arguments)
    steps = dataclasses.replace(
        asked,
        optimizer=dataclasses.replace(asked.optimizer, warmup_steps=0),
        training=asked.training if asked.amendments else dataclasses.replace(asked.training, num_steps=2),
    )
    flags = _changes(asked, _small(steps))
    name, number = asked.run_name, 2
    while storage.exists(storage.join(asked.training.runs_folder, name)):
        name, number = f"{asked.run_name}-{number}", number + 1
    return flags if name == asked.run_name else [*flags, "--training.run-name", name]


def small_sweep(arguments: Sequence[str]) -> list[str]:
    """One trial of two steps, or two of a population, under another name where the space was searched before."""
    config, space = sweep_request(arguments)
    sizes = {"--num-steps": "2", "--rung-every-n-steps": "1", "--num-seeds": "1", "--max-concurrent": "1"}
    budget = {"--budget": "2" if config.scheduler == "pbt" else "1"}
    name, number = config.name or f"sweep-{space.name}", 1
    while storage.exists(storage.join(space.base.training.runs_folder, name)):
        name, number = f"sweep-{space.name}-{number}", number + 1
    flags = [word for flag in (sizes | budget | {"--name": name}).items() for word in flag]
    return [*flags, *_changes(space.base, _small(space.base))]


def _small(asked: ExperimentConfig) -> ExperimentConfig:
    small = debug()
    batch = {"global_batch_size": 16, "num_workers": 1, "cpus_per_worker": 1, "device": "auto"}
    return dataclasses.replace(
        asked,
        model=small.model,
        ingest=dataclasses.replace(asked.ingest, slice_size=16, window_size=32),
        training=dataclasses.replace(asked.training, **batch, precision="float32", log_every_n_steps=1),
        tracking=dataclasses.replace(asked.tracking, system_metrics_every_n_seconds=None),
    )


def _changes(asked: ExperimentConfig, wanted: ExperimentConfig) -> list[str]:
    """Flags that make one of the other."""
    before, after = flatten(to_dict(asked)), flatten(to_dict(wanted))
    return [word for name, value in after.items() if value != before[name] for word in _flag(name, value)]


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
    "sweep": small_sweep,
    "evaluate": lambda arguments: ["--num-workers", "1"],
    "compare": no_more,
    "segment": no_more,
    "import-weights": no_more,
    "export": no_more,
    "register": no_more,
    "app": no_more,
    "cost": measured_run,
    "doctor": lambda arguments: ["--least-free-gigabytes", "0.1"],
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
