"""The commands, one function each. A function parses its arguments, then imports and calls the module that does the
work, so that help and errors in arguments are shown at once."""

from collections.abc import Callable, Sequence
from typing import Any

from pipelines.cli.flags import one_of, parse
from pipelines.cli.requests import dry_run_request, is_dry_run, pretrain_config, sweep_request


def pretrain(arguments: Sequence[str]) -> dict[str, Any]:
    """Train an experiment, or resume its training."""
    from pipelines.experiments.catalogue import EXPERIMENTS

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: groupvit pretrain EXPERIMENT [--FLAG VALUE ...] [--json]\n\nexperiments:")
        for name, function in EXPERIMENTS.items():
            print(f"  {name:16} {' '.join((function.__doc__ or '').split())}")
        print("\n`groupvit pretrain EXPERIMENT --help` lists the flags with the experiment's values.")
        print("`--dry-run` checks it without training: data, memory, cores, network, hours (`--dry-run --help`).")
        if not arguments:
            raise ValueError("an experiment is missing: give one of those above")
        raise SystemExit(0)
    if is_dry_run(arguments):
        request = dry_run_request(arguments)
        from pipelines.training.dry_run import dry_run  # only after parsing: torch takes seconds to import

        return dry_run(*request)
    from pipelines.training.pretrain import pretrain as run

    return run(pretrain_config(arguments))


def sweep(arguments: Sequence[str]) -> dict[str, Any]:
    """Train many variants of an experiment and compare them, or resume a sweep."""
    from pipelines.sweeps.catalogue import SPACES

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
    from pipelines.sweeps.plan import plan_sweep

    planned = plan_sweep(*sweep_request(arguments))
    from pipelines.sweeps.sweep import sweep as run  # only after planning: Ray takes seconds to import

    return run(planned)


def evaluate(arguments: Sequence[str]) -> dict[str, Any]:
    """Measure how well a checkpoint segments scenes with masks, or what the usual mistakes cost."""
    from pipelines.evaluation.config import EvaluateConfig

    config = parse(EvaluateConfig, arguments, prog="groupvit evaluate")
    if config.explain:
        from pipelines.evaluation.explain import explain

        return explain(config)
    from pipelines.evaluation.evaluate import evaluate as run  # only after parsing: Ray takes seconds to import

    return run(config)


def compare(arguments: Sequence[str]) -> dict[str, Any]:
    """Compare evaluations side by side, and test whether they differ by chance."""
    from pipelines.comparison.config import CompareConfig

    config = parse(CompareConfig, arguments, prog="groupvit compare")
    from pipelines.comparison.compare import compare as run  # only after parsing: scipy takes a second to import

    return run(config)


def segment(arguments: Sequence[str]) -> dict[str, Any]:
    """Segment images by words."""
    from pipelines.serving.segment import SegmentConfig
    from pipelines.serving.segment import segment as run

    return run(parse(SegmentConfig, arguments, prog="groupvit segment"))


def import_weights(arguments: Sequence[str]) -> dict[str, Any]:
    """Make a checkpoint from released weights or Hugging Face's."""
    from pipelines.models.import_weights import ImportWeightsConfig
    from pipelines.models.import_weights import import_weights as run

    return run(parse(ImportWeightsConfig, arguments, prog="groupvit import-weights"))


def export(arguments: Sequence[str]) -> dict[str, Any]:
    """Export a checkpoint: to Hugging Face, to ONNX, or to the names of the released weights."""
    from pipelines.models.export import ExportConfig
    from pipelines.models.export import export as run

    return run(parse(ExportConfig, arguments, prog="groupvit export"))


def register(arguments: Sequence[str]) -> dict[str, Any]:
    """Register a checkpoint as a model in MLflow."""
    from pipelines.models.register import RegisterConfig
    from pipelines.models.register import register as run

    return run(parse(RegisterConfig, arguments, prog="groupvit register"))


def app(arguments: Sequence[str]) -> dict[str, Any]:
    """Serve a page that segments images by words, until Ctrl-C."""
    from pipelines.serving.app.config import AppConfig

    config = parse(AppConfig, arguments, prog="groupvit app")
    from pipelines.serving.app.serve import run_app  # only after parsing: Ray takes seconds to import

    return run_app(config)


def download(arguments: Sequence[str]) -> dict[str, Any]:
    """Download the images of a URL list into raw shards, or resume a download."""
    from pipelines.download.config import DownloadConfig
    from pipelines.download.download import download as run

    return run(parse(DownloadConfig, arguments, prog="groupvit download"))


def curate(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn raw shards into a data set."""
    from pipelines.curation.config import CurateConfig
    from pipelines.curation.curate import curate as run

    return run(parse(CurateConfig, arguments, prog="groupvit curate"))


def cost(arguments: Sequence[str]) -> dict[str, Any]:
    """Estimate the hours and the cost of a training."""
    from pipelines.experiments.catalogue import EXPERIMENTS

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: groupvit cost EXPERIMENT [--FLAG VALUE ...] [--json]\n")
        print(f"experiments: {', '.join(EXPERIMENTS)}\n\n`groupvit cost EXPERIMENT --help` lists the flags.")
        if not arguments:
            raise ValueError("an experiment is missing: give one of those above")
        raise SystemExit(0)
    name, *flags = arguments
    make_experiment = one_of(EXPERIMENTS, name, "experiment")
    from pipelines.training.cost import CostConfig, estimate

    return estimate(parse(CostConfig, flags, prog=f"groupvit cost {name}"), make_experiment())


def doctor(arguments: Sequence[str]) -> dict[str, Any]:
    """Check this machine or a cluster: versions, GPUs, clocks, disks, network, object storage, MLflow."""
    from pipelines.doctor.config import DoctorConfig

    config = parse(DoctorConfig, arguments, prog="groupvit doctor")
    from pipelines.doctor.doctor import doctor as run  # only after parsing: Ray takes seconds to import

    return run(config)


def submit(arguments: Sequence[str]) -> dict[str, Any]:
    """Run a command on a cluster, or manage a job there."""
    from pipelines.cli.submit import submit_command

    return submit_command(arguments)


def prepare_context(arguments: Sequence[str]) -> dict[str, Any]:
    """Make the label files of the PASCAL Context benchmark from its annotations."""
    from pipelines.benchmarks.context_labels import PrepareContextConfig
    from pipelines.benchmarks.context_labels import prepare_context as run

    return run(parse(PrepareContextConfig, arguments, prog="groupvit prepare-context"))


def demo_data(arguments: Sequence[str]) -> dict[str, Any]:
    """Make the data of the demo: a training data set, and scenes with masks for evaluation."""
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
    kind = one_of({"stamps": "stamps", "shapes": "shapes"}, kind, "kind of data")
    return run(kind, parse(DemoDataConfig, flags, prog=f"groupvit demo-data {kind}"))


def inspect(arguments: Sequence[str]) -> dict[str, Any]:
    """Show what a data set contains, in the terminal and as a page; verify it."""
    from pipelines.dataset.inspect import InspectConfig, inspect_dataset

    return inspect_dataset(parse(InspectConfig, arguments, prog="groupvit inspect"))


def inspect_step(arguments: Sequence[str]) -> dict[str, Any]:
    """Show what a run saw at a step, for example at one that it skipped."""
    from pipelines.training.inspect_step import InspectStepConfig
    from pipelines.training.inspect_step import inspect_step as run

    return run(parse(InspectStepConfig, arguments, prog="groupvit inspect-step"))


def forget(arguments: Sequence[str]) -> dict[str, Any]:
    """Remove samples from a data set by URL, host or hash, and tell which runs have seen them."""
    from pipelines.removal.config import ForgetConfig
    from pipelines.removal.forget import forget as run

    return run(parse(ForgetConfig, arguments, prog="groupvit forget"))


def demo(arguments: Sequence[str]) -> dict[str, Any]:
    """Run the whole chain: make data, pretrain on it, evaluate, compare with baselines."""
    from pipelines.demo.run import DemoConfig, run_demo

    return run_demo(parse(DemoConfig, arguments, prog="groupvit demo"))


COMMANDS: dict[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "demo": demo,
    "demo-data": demo_data,
    "download": download,
    "curate": curate,
    "inspect": inspect,
    "forget": forget,
    "pretrain": pretrain,
    "inspect-step": inspect_step,
    "sweep": sweep,
    "evaluate": evaluate,
    "compare": compare,
    "segment": segment,
    "import-weights": import_weights,
    "export": export,
    "register": register,
    "app": app,
    "cost": cost,
    "doctor": doctor,
    "submit": submit,
    "prepare-context": prepare_context,
}
