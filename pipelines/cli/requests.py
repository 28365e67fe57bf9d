"""Turns the arguments of `pretrain` and `sweep`, short flags included, into configs."""

import argparse
import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.cli.flags import flags_of, is_number, one_of, parse, refuse_unknown

if TYPE_CHECKING:
    from pipelines.experiments.config import DataConfig, ExperimentConfig
    from pipelines.sweeps.config import SweepConfig
    from pipelines.sweeps.space import Space
    from pipelines.training.dry_run_config import DryRunConfig

SHORT_FLAGS = ("--data", "--evaluate-every-n-steps", "--amend")
"""Flags of `pretrain` that are not fields of its config."""


def pretrain_config(arguments: Sequence[str]) -> "ExperimentConfig":
    """Return the config for an experiment's name and flags, short ones included."""
    from pipelines.experiments.catalogue import EXPERIMENTS

    name, *flags = arguments
    default = one_of(EXPERIMENTS, name, "experiment")()
    short = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in SHORT_FLAGS:
        short.add_argument(flag, action="append", default=[])
    try:
        given, flags = short.parse_known_args(flags)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error.argument_name}: a value is missing") from None
    if given.data:
        if any(flag.partition("=")[0] in ("--data.sources", "--data.weights", "--data.names") for flag in flags):
            raise ValueError("--data stands for --data.sources, --data.weights and --data.names: leave those out")
        data, kept = parse_data(given.data), default.data
        data = dataclasses.replace(data, seed=kept.seed, caption_mix=kept.caption_mix)
        default = dataclasses.replace(default, data=data)
    if given.amend:
        if any(flag.partition("=")[0] == "--amendments" for flag in flags):
            raise ValueError("--amend stands for --amendments: leave that out")
        default = dataclasses.replace(default, amendments=tuple(given.amend))
    flags += [f"--evaluation.every-n-steps={cadence}" for cadence in given.evaluate_every_n_steps]
    return parse(type(default), flags, prog=f"groupvit pretrain {name}", default=default)


def is_dry_run(arguments: Sequence[str]) -> bool:
    """Whether the arguments of `pretrain` ask for a dry run. Any of its flags does."""
    return any(_is_of_dry_run(argument) for argument in arguments)


def dry_run_request(arguments: Sequence[str]) -> "tuple[ExperimentConfig, DryRunConfig]":
    """Return the configs for an experiment's name and flags: those of the experiment and those of the dry run."""
    from pipelines.training.dry_run_config import DryRunConfig, DryRunFlags

    if "-h" in arguments or "--help" in arguments:
        parse(DryRunFlags, ["--help"], prog="groupvit pretrain EXPERIMENT --dry-run")
    name, *flags = arguments
    if name.startswith("-"):
        raise ValueError("an experiment is missing: groupvit pretrain EXPERIMENT --dry-run ...")
    of_experiment, own, is_own = [name], [], False
    for argument in flags:
        if argument.startswith("-") and not is_number(argument):
            is_own = _is_of_dry_run(argument)
        if argument != "--dry-run":
            (own if is_own else of_experiment).append(argument)
    options: DryRunConfig = parse(DryRunFlags, own, prog=f"groupvit pretrain {name} --dry-run").dry_run
    return pretrain_config(of_experiment), options


def _is_of_dry_run(argument: str) -> bool:
    return re.match(r"--dry[-_]run(?=[.=]|$)", argument) is not None


def sweep_request(arguments: Sequence[str]) -> "tuple[SweepConfig, Space]":
    """Return the config and the space for a space's name and flags: those of the sweep and those of its experiment."""
    from pipelines.experiments.catalogue import EXPERIMENTS
    from pipelines.experiments.config import ExperimentConfig
    from pipelines.sweeps.catalogue import SPACES
    from pipelines.sweeps.config import SweepConfig
    from pipelines.sweeps.plan import prepared

    name, *flags = arguments
    make_space = one_of(SPACES, name, "space")
    own, of_experiment = [*flags_of(SweepConfig), "-h", "--help"], [*flags_of(ExperimentConfig), *SHORT_FLAGS]
    given: dict[bool, list[str]] = {True: [], False: []}
    is_own = True
    for argument in flags:
        if argument.startswith("-") and not is_number(argument):
            flag = argument.partition("=")[0]
            if flag not in own and flag.replace("--no-", "--", 1) not in (*own, *of_experiment):
                refuse_unknown("flag", flag, [*own, *of_experiment])
            is_own = flag in own
        given[is_own].append(argument)
    config = parse(SweepConfig, given[True], prog=f"groupvit sweep {name}")
    one_of(EXPERIMENTS, config.base, "base experiment")
    base = pretrain_config([config.base, *given[False]])
    return config, make_space(prepared(base, config, EXPERIMENTS[config.base]().training.num_steps))


def parse_data(texts: Sequence[str]) -> "DataConfig":
    """Return the sources of `[NAME=]URI[:WEIGHT]`, one for each text. ValueError if only some have a weight.

    A number after the last colon is a weight. If a path ends in such a number, add a slash. An existing folder has no
    name before it: `year=2020/train` is one folder.
    """
    from pipelines.experiments.config import DataConfig
    from pipelines.local.folder_names import split_name

    names, sources, weights = [], [], []
    for text in texts:
        found = re.fullmatch(r"(?P<source>.+?)(?::(?P<weight>\d*\.?\d+))?", text, re.DOTALL)
        name, uri = (None, "") if found is None else split_name(found["source"])
        if found is None or not uri:
            raise ValueError(f"data={text!r} is not a source: give [NAME=]URI[:WEIGHT]")
        sources.append(uri)
        names.append(name or uri.rstrip("/").rpartition("/")[2])
        weights += [float(found["weight"])] if found["weight"] else []
    if len(weights) not in (0, len(sources)):
        raise ValueError(
            f"data: {len(weights)} of {len(sources)} sources have a weight ({' '.join(texts)}): give all one"
        )
    return DataConfig(sources=tuple(sources), weights=tuple(weights) or None, names=tuple(names))
