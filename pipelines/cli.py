"""The command line.

    groupvit pretrain EXPERIMENT --FLAG VALUE ...     groupvit COMMAND --help

A command is a function below: it parses its arguments and calls the module that does the work, which is imported only
then, so that help and mistakes are answered at once. What the user got wrong is a ValueError: one line on stderr,
exit code 2.
"""

import contextlib
import dataclasses
import difflib
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from pipelines.config import ExperimentConfig
    from pipelines.search_space import Space
    from pipelines.sweep_config import SweepConfig

from pipelines.partial import PartlyDone, WorkFailedError
from pipelines.terminal import failure_of_output, keep_going

Config = TypeVar("Config")

_INVALID_CHOICE = re.compile(
    r"invalid choice '(?P<value>.*)' for argument '--(?P<flag>.*)'. Expected one of (?P<known>.*)"
)

_USAGE = """\
Train GroupViT on image-text pairs, and segment images by words with it.

  groupvit demo                                   all of it in minutes: data, training, evaluation, pictures
  groupvit demo-data shapes --out data/shapes     make a small data set, drawn; or stamps, from real photos
  groupvit download --url-list LIST --out DIR     fetch the images of a list of URLs with captions
  groupvit curate --raw data/raw --out data/cc3m  make one of downloaded images and captions
  groupvit inspect data/shapes/train              look at a data set: counts, histograms, a page of samples
  groupvit pretrain debug                         train on it; the same command continues a run that was stopped
  groupvit sweep debug --base debug --evaluation.root data/shapes/validation   train variants, compare them
  groupvit evaluate --checkpoint runs/debug --root data/shapes/validation
  groupvit evaluate --checkpoint runs/debug --root data --benchmark voc21   or all; see docs/evaluation.md
  groupvit compare RUN RUN                        evaluations side by side, and whether they differ by chance
  groupvit segment photo.jpg --checkpoint runs/debug --classes "dog, grass"
  groupvit import-weights FILE_OR_FOLDER --out DIR  make a checkpoint of released weights, or of Hugging Face's
  groupvit export --checkpoint runs/debug --to onnx --out DIR   or to hf, or to official
  groupvit register --checkpoint runs/debug --name NAME  put a checkpoint into MLflow, for others to load
  groupvit app --checkpoint runs/debug            the same in the browser, on this machine
  groupvit cost gcc_yfcc_30e --instances g5.12xlarge=4 --from-run RUN   hours and money a training will take
  groupvit submit pretrain EXPERIMENT ... --follow   the same on a cluster; also sweep, evaluate, curate,
                                                  download; see docs/clusters.md

Commands: {commands}. `groupvit COMMAND --help` explains each. Every command takes --json: the last line of its
output is then one JSON object. Exit codes: 0 done, 1 failed at work, 2 something to fix in what was asked.
"""


def pretrain(arguments: Sequence[str]) -> dict[str, Any]:
    """Train an experiment, or continue it."""
    from pipelines.experiments import EXPERIMENTS

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: groupvit pretrain EXPERIMENT [--FLAG VALUE ...] [--json]\n\nexperiments:")
        for name, function in EXPERIMENTS.items():
            print(f"  {name:16} {' '.join((function.__doc__ or '').split())}")
        print("\n`groupvit pretrain EXPERIMENT --help` lists the flags with the experiment's values.")
        if not arguments:
            raise ValueError("an experiment is missing: give one of those above")
        raise SystemExit(0)
    config = pretrain_config(arguments)
    from pipelines.config import validate

    validate(config)  # before Ray is imported, which takes seconds

    from pipelines.pretrain import pretrain as run

    return run(config)


def pretrain_config(arguments: Sequence[str]) -> "ExperimentConfig":
    """The config of an experiment's name and flags, short ones included."""
    from pipelines.config import parse_data
    from pipelines.experiments import EXPERIMENTS

    name, *flags = arguments
    default = _one_of(EXPERIMENTS, name, "experiment")()
    flags, given = _take("--data", flags)
    if given and any(flag.partition("=")[0] in ("--data.sources", "--data.weights", "--data.names") for flag in flags):
        raise ValueError("--data stands for --data.sources, --data.weights and --data.names: leave those out")
    if given:
        data = dataclasses.replace(parse_data(given), seed=default.data.seed)
        default = dataclasses.replace(default, data=data)
    flags, cadences = _take("--evaluate-every-n-steps", flags)
    flags += [f"--evaluation.every-n-steps={cadence}" for cadence in cadences]
    return parse(type(default), flags, prog=f"groupvit pretrain {name}", default=default)


def sweep(arguments: Sequence[str]) -> dict[str, Any]:
    """Train many variants of an experiment and compare them, or go on with that."""
    from pipelines.spaces import SPACES

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: groupvit sweep SPACE [--base EXPERIMENT] [--FLAG VALUE ...] [--json]\n\nspaces:")
        for name, function in SPACES.items():
            print(f"  {name:14} {' '.join((function.__doc__ or '').split())}")
        print(
            "\n`groupvit sweep SPACE --help` lists the flags; those of `groupvit pretrain BASE` are understood as well."
        )
        if not arguments:
            raise ValueError("a space is missing: give one of those above")
        raise SystemExit(0)
    config, space = sweep_request(arguments)
    from pipelines.sweep_plan import plan_sweep

    plan_sweep(config, space)  # before Ray is imported, which takes seconds

    from pipelines.sweep import sweep as run

    return run(config, space)


def sweep_request(arguments: Sequence[str]) -> "tuple[SweepConfig, Space]":
    """What is asked for and the space, of a space's name and flags: the sweep's own, and those of its experiment."""
    from pipelines.config import ExperimentConfig
    from pipelines.experiments import EXPERIMENTS
    from pipelines.spaces import SPACES
    from pipelines.sweep_config import SweepConfig
    from pipelines.sweep_plan import prepared

    name, *flags = arguments
    make_space = _one_of(SPACES, name, "space")
    own, of_experiment = [*_flags(SweepConfig), "-h", "--help"], [*_flags(ExperimentConfig), *_SHORT_FLAGS]
    given: dict[bool, list[str]] = {True: [], False: []}
    is_own = True
    for argument in flags:
        if argument.startswith("-") and not _is_number(argument):
            flag = argument.partition("=")[0]
            if flag not in own and flag.replace("--no-", "--", 1) not in (*own, *of_experiment):
                _unknown("flag", flag, [*own, *of_experiment])
            is_own = flag in own
        given[is_own].append(argument)
    config = parse(SweepConfig, given[True], prog=f"groupvit sweep {name}")
    _one_of(EXPERIMENTS, config.base, "base experiment")
    base = pretrain_config([config.base, *given[False]])
    return config, make_space(prepared(base, config, EXPERIMENTS[config.base]().training.num_steps))


def evaluate(arguments: Sequence[str]) -> dict[str, Any]:
    """Measure how well a checkpoint segments scenes with masks."""
    from pipelines.evaluate_config import EvaluateConfig

    config = parse(EvaluateConfig, arguments, prog="groupvit evaluate")
    from pipelines.evaluate import evaluate as run  # after help and mistakes: Ray takes seconds to import

    return run(config)


def compare(arguments: Sequence[str]) -> dict[str, Any]:
    """Set evaluations side by side, and say whether they differ by chance."""
    from pipelines.compare_config import CompareConfig

    config = parse(CompareConfig, arguments, prog="groupvit compare")
    from pipelines.compare import compare as run  # after help and mistakes: scipy takes a second to import

    return run(config)


def segment(arguments: Sequence[str]) -> dict[str, Any]:
    """Segment images by words."""
    from pipelines.segment import SegmentConfig
    from pipelines.segment import segment as run

    return run(parse(SegmentConfig, arguments, prog="groupvit segment"))


def import_weights(arguments: Sequence[str]) -> dict[str, Any]:
    """Make a checkpoint of weights from elsewhere."""
    from pipelines.import_weights import ImportWeightsConfig
    from pipelines.import_weights import import_weights as run

    return run(parse(ImportWeightsConfig, arguments, prog="groupvit import-weights"))


def export(arguments: Sequence[str]) -> dict[str, Any]:
    """Give a checkpoint away: to Hugging Face, as ONNX, or under the released names."""
    from pipelines.export import ExportConfig
    from pipelines.export import export as run

    return run(parse(ExportConfig, arguments, prog="groupvit export"))


def register(arguments: Sequence[str]) -> dict[str, Any]:
    """Register a checkpoint as a model in MLflow."""
    from pipelines.register import RegisterConfig
    from pipelines.register import register as run

    return run(parse(RegisterConfig, arguments, prog="groupvit register"))


def app(arguments: Sequence[str]) -> dict[str, Any]:
    """Show a page on which images are segmented by words, until Ctrl-C."""
    from pipelines.app.config import AppConfig

    config = parse(AppConfig, arguments, prog="groupvit app")
    from pipelines.app.serve import run_app  # after help and mistakes: Ray takes seconds to import

    return run_app(config)


def download(arguments: Sequence[str]) -> dict[str, Any]:
    """Fetch the images of a URL list into raw shards, or go on fetching them."""
    from pipelines.download import download as run
    from pipelines.download_config import DownloadConfig

    return run(parse(DownloadConfig, arguments, prog="groupvit download"))


def curate(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn raw shards into a data set."""
    from pipelines.curate import curate as run
    from pipelines.curation.config import CurateConfig

    return run(parse(CurateConfig, arguments, prog="groupvit curate"))


def cost(arguments: Sequence[str]) -> dict[str, Any]:
    """Estimate the hours and the money a training will take."""
    from pipelines.experiments import EXPERIMENTS

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: groupvit cost EXPERIMENT --instances NAME=COUNT ... [--FLAG VALUE ...] [--json]\n")
        print(f"experiments: {', '.join(EXPERIMENTS)}\n\n`groupvit cost EXPERIMENT --help` lists the flags.")
        if not arguments:
            raise ValueError("an experiment is missing: give one of those above")
        raise SystemExit(0)
    name, *flags = arguments
    make_experiment = _one_of(EXPERIMENTS, name, "experiment")
    from pipelines.cost import CostConfig, estimate

    return estimate(parse(CostConfig, flags, prog=f"groupvit cost {name}"), make_experiment())


def submit(arguments: Sequence[str]) -> dict[str, Any]:
    """Run a command on a cluster, or see to one that runs there."""
    from pipelines.submit import submit_command  # it parses the submitted command by what is in this module

    return submit_command(arguments)


def prepare_context(arguments: Sequence[str]) -> dict[str, Any]:
    """Make the label files of the PASCAL Context benchmark from its annotations."""
    from pipelines.benchmarks.context_labels import PrepareContextConfig
    from pipelines.benchmarks.context_labels import prepare_context as run

    return run(parse(PrepareContextConfig, arguments, prog="groupvit prepare-context"))


def demo_data(arguments: Sequence[str]) -> dict[str, Any]:
    """Make the data of the demo: a training data set, and scenes with masks to evaluate on."""
    from pipelines.demo.generate import DemoDataConfig
    from pipelines.demo.generate import demo_data as run

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: groupvit demo-data stamps|shapes --out DIR [--FLAG VALUE ...] [--json]\n")
        print(
            "  stamps  real photo cut-outs on real photos, fetched with apt, without root\n  shapes  drawn, no download"
        )
        print("\n`groupvit demo-data shapes --help` lists the flags.")
        if not arguments:
            raise ValueError("the kind of data is missing: give stamps or shapes")
        raise SystemExit(0)
    kind, *flags = arguments
    kind = _one_of({"stamps": "stamps", "shapes": "shapes"}, kind, "kind of data")
    return run(kind, parse(DemoDataConfig, flags, prog=f"groupvit demo-data {kind}"))


def inspect(arguments: Sequence[str]) -> dict[str, Any]:
    """Show what a data set holds, in the terminal and as a page; verify it."""
    from pipelines.inspect_dataset import InspectConfig, inspect_dataset

    return inspect_dataset(parse(InspectConfig, arguments, prog="groupvit inspect"))


def demo(arguments: Sequence[str]) -> dict[str, Any]:
    """Do the whole chain: make data, pretrain on it, evaluate, compare with baselines."""
    from pipelines.demo.run import DemoConfig, run_demo

    return run_demo(parse(DemoConfig, arguments, prog="groupvit demo"))


COMMANDS: dict[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "demo": demo,
    "demo-data": demo_data,
    "download": download,
    "curate": curate,
    "inspect": inspect,
    "pretrain": pretrain,
    "sweep": sweep,
    "evaluate": evaluate,
    "compare": compare,
    "segment": segment,
    "import-weights": import_weights,
    "export": export,
    "register": register,
    "app": app,
    "cost": cost,
    "submit": submit,
    "prepare-context": prepare_context,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    keep_going()
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it tells of the tables of a new database
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--json"]
    usage = _USAGE.format(commands=", ".join(COMMANDS))
    exit_code = 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    try:
        result = _one_of(COMMANDS, arguments[0], "command")(arguments[1:])
    except ValueError as error:
        if os.environ.get("GROUPVIT_TRACEBACK"):
            raise
        print(f"groupvit: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # a disk, an object store, the network
        if os.environ.get("GROUPVIT_TRACEBACK"):
            raise
        print(f"groupvit: error: {_one_line(error)}", file=sys.stderr)
        return 1
    except WorkFailedError as error:
        if os.environ.get("GROUPVIT_TRACEBACK"):
            raise
        print(f"groupvit: error: {error}", file=sys.stderr)
        return 1
    except PartlyDone as error:
        sys.stdout.flush()
        print(f"groupvit: error: {error}", file=sys.stderr)
        result, exit_code = error.result, error.exit_code
    if as_json:
        sys.stdout.flush()
        print(json.dumps(result), flush=True)
    sys.stdout.flush()
    if failure := failure_of_output():
        print(f"groupvit: error: {failure}; the work itself is done", file=sys.stderr)
        return exit_code or 1
    return exit_code


def _one_line(error: ValueError | OSError) -> str:
    message = str(error)
    if isinstance(error, UnicodeEncodeError):  # file names and arguments that are not UTF-8 have such characters
        message = f"{error.object[:200]!a} holds bytes that are not UTF-8: rename the file, or give text in UTF-8"
    elif isinstance(error, UnicodeDecodeError):
        message = f"{error.object[:200]!r} is not UTF-8: rename the file, or convert its text"
    elif isinstance(error, OSError) and error.filename and error.strerror:
        message = f"{error.filename}: {error.strerror}"
    return " ".join(message.split())


def parse(config_type: type[Config], arguments: Sequence[str], *, prog: str, default: Config | None = None) -> Config:
    """A config from flags, its help from the strings under its fields; `--verify` alone means `--verify True`, and
    `--no-verify` means `--verify False`. ValueError for an unknown flag or a bad value."""
    import tyro

    flags = _flags(config_type)
    spelled_out: list[str] = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        positive = argument.replace("--no-", "--", 1)
        if flags.get(argument) is bool and following not in ("True", "False"):
            spelled_out += [argument, "True"]
        elif argument.startswith("--no-") and argument not in flags and flags.get(positive) is bool:
            spelled_out += [positive, "False"]
        else:
            spelled_out += [argument]

    # Beside its message, the parser draws a box and a usage line; what is wrong fits one line.
    drawn = io.StringIO()
    missing: Any = tyro.MISSING_NONPROP  # unlike MISSING, it leaves the defaults of the fields
    try:
        with contextlib.redirect_stderr(drawn):
            config, unknown = tyro.cli(
                config_type,
                prog=prog,
                args=spelled_out,
                return_unknown_args=True,
                config=(tyro.conf.FlagConversionOff,),
                default=missing if default is None else default,
            )
    except SystemExit as exit_:
        if exit_.code:
            message = _first_message(drawn.getvalue())
            if choice := _INVALID_CHOICE.search(message):
                _unknown(f"--{choice['flag']}", choice["value"], re.findall(r"'([^']*)'", choice["known"]))
            raise ValueError(message) from None
        raise
    if unknown:
        flag = unknown[0].partition("=")[0]
        if not flag.startswith("-"):
            raise ValueError(f"{flag!r} belongs to no flag: see {prog} --help")
        _unknown("flag", flag, flags)
    return config


def _take(flag: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without `flag`, and what was given after each of its places. ValueError if nothing was."""
    rest: list[str] = []
    values: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == flag:
            values.append(next(remaining, ""))
        elif argument.startswith(f"{flag}="):
            values.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    if "" in values:
        raise ValueError(f"{flag}: a value is missing")
    return rest, values


_SHORT_FLAGS = ("--data", "--evaluate-every-n-steps")
"""Of `pretrain`, which are no fields."""


def _is_number(argument: str) -> bool:
    return re.fullmatch(r"-\d*\.?\d+(e-?\d+)?", argument) is not None


def _first_message(box: str) -> str:
    """The text of the parser's box up to its first rule, without the frame. Where the terminal takes ASCII only, the
    box has a title and a rule in place of the frame.
    """
    lines = [line.strip(" │") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    rules = [index for index, line in enumerate(lines) if line and set(line) <= {"─", "-"}]
    first = 0 if "╭" in box or not rules else rules[0] + 1
    last = next((rule for rule in rules if rule > first), len(lines))
    return " ".join(" ".join(lines[first:last]).split())


def _flags(config_type: Any, prefix: str = "--") -> dict[str, Any]:
    """The type of each flag."""
    from typing import get_type_hints

    flags: dict[str, Any] = {}
    for name, hint in get_type_hints(config_type).items():
        flag = prefix + name.replace("_", "-")
        flags |= _flags(hint, f"{flag}.") if dataclasses.is_dataclass(hint) else {flag: hint}
    return flags


def _one_of(choices: dict[str, Any], name: str, kind: str) -> Any:
    if name not in choices:
        _unknown(kind, name, choices)
    return choices[name]


def _unknown(kind: str, name: str, known: Iterable[str]) -> NoReturn:
    """ValueError that names the nearest known one; a flag may be given without the group it is in."""
    known = list(known)
    last_parts = {flag.rpartition(".")[2]: flag for flag in known} if kind == "flag" else {}
    bare = name.lstrip("-")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near = near or [last_parts[part] for part in difflib.get_close_matches(bare, last_parts, n=1, cutoff=0.6)]
    advice = (
        f"did you mean {near[0]}?" if near else f"known: {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
    )
    raise ValueError(f"unknown {kind} {name}: {advice}")


if __name__ == "__main__":
    sys.exit(main())
