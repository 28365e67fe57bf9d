"""Runs commands on a cluster through Ray's job server.

    groupvit submit pretrain EXPERIMENT --FLAG VALUE ... --env MLFLOW_TRACKING_URI --follow
    groupvit submit list|status|logs|stop|resume JOB         groupvit submit check-cluster ray-cluster.yaml

Before the upload, the command is parsed as on the cluster, and the cluster is asked whether it has room. A job is named
COMMAND-NAME-ATTEMPT after what it writes. A run that is submitted again gets the next number and resumes.
"""

import contextlib
import io
import json
import shlex
from collections.abc import Sequence
from typing import Any, get_type_hints

from pipelines.cli.flags import parse, refuse_unknown
from pipelines.cli.submittable import SUBMITTABLE
from pipelines.cluster.config import SubmitConfig
from pipelines.cluster.file import check_cluster_file
from pipelines.cluster.submission import check_submission

_ON_JOBS = ("list", "status", "logs", "stop", "resume")
_USAGE = """\
usage: groupvit submit COMMAND ... [--address URL] [--env NAME ...] [--cluster FILE] [--no-code] [--follow] [--json]
       groupvit submit list | status JOB | logs JOB [--follow] | stop JOB | resume JOB [--follow]
       groupvit submit check-cluster FILE

  {commands}   what can be submitted, with the flags it has without `submit`
  list           jobs of the cluster
  status         what became of a job; JOB as printed by submit, or without its last number for the newest
  logs           what it printed
  stop           end it; says from where it will continue
  resume         submit the same command again: a run continues from its last checkpoint
  check-cluster  whether `ray up` will take a cluster file

flags of submit itself:
"""


def submit_command(arguments: Sequence[str]) -> dict[str, Any]:
    """Run `groupvit submit ...` and return what `--json` prints. ValueError if the user's input is invalid; PartlyDone,
    with the job's exit code, if a followed job fails."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE.format(commands=", ".join(SUBMITTABLE)), end="")
        for line in _flag_lines():
            print(line)
        if not arguments:
            raise ValueError("a command is missing: give one of those above")
        raise SystemExit(0)
    own, (command, *rest) = split_flags(arguments)
    config = parse(SubmitConfig, own, prog="groupvit submit")
    if command == "check-cluster":
        return check_cluster_file(_only(rest, "check-cluster", "file"))
    if command in SUBMITTABLE:
        return _submit(command, rest, config)
    if command not in _ON_JOBS:
        refuse_unknown("command to submit", command, [*SUBMITTABLE, *_ON_JOBS, "check-cluster"])
    return _on_jobs(command, rest, config)


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the flags of `submit` itself with their values, wherever they stand; and the other arguments."""
    hints = get_type_hints(SubmitConfig)
    kinds = {f"--{name.replace('_', '-')}": hint for name, hint in hints.items()}
    kinds |= {f"--no-{flag[2:]}": bool for flag, hint in kinds.items() if hint is bool}
    own: list[str] = []
    others: list[str] = []
    names: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        flag, equals, value = argument.partition("=")
        if flag not in kinds:
            others.append(argument)
            continue
        if kinds[flag] is not bool and not equals:
            if not remaining or remaining[0].startswith("--"):
                raise ValueError(f"{flag}: a value is missing")
            value = remaining.pop(0)
        if flag == "--env":
            names.append(value)
        elif kinds[flag] is bool:
            own += [argument, remaining.pop(0)] if remaining and remaining[0] in ("True", "False") else [argument]
        else:
            own += [flag, value]
    if not others:
        raise ValueError("a command is missing: see groupvit submit --help")
    return own + (["--env", *names] if names else []), others


def _submit(command: str, arguments: Sequence[str], config: SubmitConfig) -> dict[str, Any]:
    submission = SUBMITTABLE[command](arguments)
    check_submission(submission, config)
    from pipelines.cluster.submit import submit  # Ray takes seconds to import

    return submit(submission, config, runner=("python", "-m", "pipelines.cli.on_cluster"))


def _on_jobs(verb: str, rest: Sequence[str], config: SubmitConfig) -> dict[str, Any]:
    from pipelines.cluster.jobs import connect, our_jobs  # Ray takes seconds to import
    from pipelines.cluster.submit import followed
    from pipelines.cluster.watch import print_job, settle, stopped_at

    name = "" if verb == "list" and not rest else _only(rest, verb, "job")
    client = connect(config.address)
    jobs = our_jobs(client, config.address)
    if verb == "list":
        for job in jobs:
            print_job(job)
        return {"jobs": [{"job": job.submission_id, "status": str(job.status.value)} for job in jobs]}
    matching = [job for job in jobs if name in (job.submission_id, (job.submission_id or "").rpartition("-")[0])]
    if not matching:
        known = ", ".join(str(job.submission_id) for job in jobs[-5:]) or "none"
        raise ValueError(
            f"{name} is not a job of {config.address}: give one of `groupvit submit list` (newest: {known})"
        )
    job = matching[-1]
    job_id, metadata = str(job.submission_id), job.metadata or {}
    if verb == "status":
        print_job(job)
        if job.message:
            print(" ".join(job.message.split())[:500])
    elif verb == "logs" and config.follow:
        return followed(client, job_id, config)
    elif verb == "logs":
        print(client.get_job_logs(job_id), end="")
    elif verb == "stop":
        client.stop_job(job_id)
        job = settle(client, job_id)
        print(f"{job_id} is {job.status.lower()}; {stopped_at(metadata)}; `groupvit submit resume {job_id}`")
    else:
        if not job.status.is_terminal():
            raise ValueError(f"{job_id} is {job.status.lower()}: there is nothing to resume")
        flags = [*json.loads(metadata["groupvit_flags"]), "--address", config.address]
        own, _ = split_flags([*flags, "resume"])
        again = parse(SubmitConfig, [*own, *(["--follow"] if config.follow else [])], prog="groupvit submit resume")
        return _submit(metadata["groupvit"], json.loads(metadata["groupvit_arguments"]), again)
    return {"job": job_id, "status": str(job.status.value), "exit_code": job.driver_exit_code}


def _only(rest: Sequence[str], verb: str, kind: str) -> str:
    if len(rest) != 1 or rest[0].startswith("-"):
        raise ValueError(f"submit {verb} takes one {kind}, not {shlex.join(rest) or 'none'}")
    return rest[0]


def _flag_lines() -> list[str]:
    """Return the help lines of the flags."""
    drawn = io.StringIO()
    with contextlib.redirect_stdout(drawn), contextlib.suppress(SystemExit):
        parse(SubmitConfig, ["--help"], prog="groupvit submit")
    return drawn.getvalue().splitlines()[1:]
