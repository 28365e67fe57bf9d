"""Commands that can be submitted to a cluster: how their arguments are parsed, which resources they need, and what they
read and write."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipelines.cli.flags import parse
from pipelines.cli.requests import is_dry_run, pretrain_config, sweep_request
from pipelines.cluster.room import Demand
from pipelines.cluster.submission import Submission

if TYPE_CHECKING:
    from pipelines.experiments.config import ExperimentConfig


def _pretrain(arguments: Sequence[str]) -> Submission:
    from pipelines.experiments.config import validate

    if not arguments or arguments[0].startswith("-"):
        raise ValueError("an experiment is missing: groupvit submit pretrain EXPERIMENT ...")
    if is_dry_run(arguments):
        raise ValueError("--dry-run needs no cluster: give groupvit pretrain EXPERIMENT ... --dry-run here")
    config = pretrain_config(arguments)
    validate(config)
    return Submission(
        command="pretrain",
        arguments=tuple(arguments),
        name=config.run_name,
        place=f"{config.training.runs_folder.rstrip('/')}/{config.run_name}",
        uris=_uris(config) | {"tracking.uri": None if config.tracking.uri == "default" else config.tracking.uri},
        demands=_demands(config, at_a_time=1),
    )


def _sweep(arguments: Sequence[str]) -> Submission:
    from pipelines.sweeps.plan import plan_sweep

    if not arguments or arguments[0].startswith("-"):
        raise ValueError("a space is missing: groupvit submit sweep SPACE ...")
    config, space = sweep_request(arguments)
    sweep = plan_sweep(config, space)
    # The sweep has filled in the default of this machine, which may differ on the cluster.
    given = any(argument.startswith("--tracking.uri") for argument in arguments)
    return Submission(
        command="sweep",
        arguments=tuple(arguments),
        name=sweep.name,
        place=sweep.uri,
        uris=_uris(space.base) | {"tracking.uri": sweep.tracking_uri if given else None},
        demands=_demands(space.base, at_a_time=config.max_concurrent),
    )


def _uris(config: "ExperimentConfig") -> dict[str, str | None]:
    training, evaluation = config.training, config.evaluation
    uris: dict[str, str | None] = {f"data.sources[{index}]": uri for index, uri in enumerate(config.data.sources)}
    uris |= {"training.runs_folder": training.runs_folder, "training.record_samples": training.record_samples}
    if evaluation.every_n_steps is not None:
        uris |= {"evaluation.root": evaluation.root, "evaluation.calibration": evaluation.calibration}
    return uris


def _demands(config: "ExperimentConfig", *, at_a_time: int) -> tuple[Demand, ...]:
    """Return the demands of `at_a_time` concurrent runs."""
    training, evaluation = config.training, config.evaluation
    demands = [
        Demand(
            what="training.num_workers" if at_a_time == 1 else f"max_concurrent={at_a_time} x training.num_workers",
            count=training.min_workers * at_a_time,
            cpus=training.cpus_per_worker,
            gpus=0.0 if training.device == "cpu" else training.gpus_per_worker,
            gpus_if_any=training.device == "auto",
        )
    ]
    if evaluation.every_n_steps is not None:
        demands.append(
            Demand(
                what="evaluation.num_workers",
                count=evaluation.num_workers * at_a_time,
                cpus=evaluation.cpus_per_worker,
                gpus=evaluation.gpus_per_worker,
            )
        )
    return (*demands, Demand(what="reading the data", count=at_a_time, cpus=1))


def _evaluate(arguments: Sequence[str]) -> Submission:
    from pipelines.evaluation.config import EvaluateConfig

    config = parse(EvaluateConfig, arguments, prog="groupvit submit evaluate")
    fields = ("checkpoint", "root", "out", "calibration", "tracking_uri")
    return Submission(
        command="evaluate",
        arguments=tuple(arguments),
        name=_last_part(config.out),
        place=config.out,
        uris={name: getattr(config, name) for name in fields},
        demands=(
            Demand(
                what="num_workers", count=config.num_workers, cpus=config.cpus_per_worker, gpus=config.gpus_per_worker
            ),
        ),
    )


def _curate(arguments: Sequence[str]) -> Submission:
    from pipelines.curation.config import CurateConfig, validate

    config = parse(CurateConfig, arguments, prog="groupvit submit curate")
    validate(config)
    uris: dict[str, str | None] = {f"raw[{index}]": text.rpartition("=")[2] for index, text in enumerate(config.raw)}
    uris |= {f"captions_from[{index}]": uri for index, uri in enumerate(config.captions_from)}
    return Submission(
        command="curate",
        arguments=tuple(arguments),
        name=_last_part(config.out),
        place=config.out,
        uris=uris | {"out": config.out, "opt_out": config.opt_out},
        demands=(Demand(what="num_workers", count=1, cpus=1),),  # no more workers are started than there is room for
    )


def _download(arguments: Sequence[str]) -> Submission:
    from pipelines.download.config import DownloadConfig

    config = parse(DownloadConfig, arguments, prog="groupvit submit download")
    if config.distributor != "ray":
        raise ValueError(
            f"distributor={config.distributor} would download on the cluster's head alone: give --distributor ray"
        )
    return Submission(
        command="download",
        arguments=tuple(arguments),
        name=_last_part(config.out),
        place=config.out,
        uris={"url_list": config.url_list, "out": config.out},
        demands=(Demand(what="num_processes", count=1, cpus=1),),
    )


SUBMITTABLE: dict[str, Callable[[Sequence[str]], Submission]] = {
    "pretrain": _pretrain,
    "sweep": _sweep,
    "evaluate": _evaluate,
    "curate": _curate,
    "download": _download,
}
"""Functions that parse a command's arguments and check them as the command itself does, but without reading data.
ValueError if they are invalid."""


def _last_part(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]
