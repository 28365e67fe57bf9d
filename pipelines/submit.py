"""Commands on a cluster, by Ray's job server.

    groupvit submit pretrain EXPERIMENT --FLAG VALUE ... --env MLFLOW_TRACKING_URI --follow
    groupvit submit list|status|logs|stop|resume JOB         groupvit submit check-cluster ray-cluster.yaml

Before anything is uploaded, the command is read as it would be read there, and the cluster is asked whether it has
room. A job is called COMMAND-NAME-ATTEMPT after what it writes; a run is submitted again under the next number and
continues.
"""

import asyncio
import difflib
import json
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any, get_type_hints

from pipelines.cli import parse
from pipelines.cluster_file import check_cluster_file, machines_at_most
from pipelines.job_package import environment, job_package
from pipelines.partial import PartlyDone
from pipelines.provenance import redact
from pipelines.submit_config import SubmitConfig
from pipelines.submittable import SUBMITTABLE, Submission, check_uris

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
    """`groupvit submit ...`; returns what `--json` prints. ValueError for what the user must mend; PartlyDone with the
    job's exit code if a followed job fails."""
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
        known = [*SUBMITTABLE, *_ON_JOBS, "check-cluster"]
        near = difflib.get_close_matches(command, known, n=1)
        advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"unknown command to submit {command}: {advice}")
    return _on_jobs(command, rest, config)


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are flags of `submit` itself, wherever they stand, with their values; and the others."""
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
    if redact(shlex.join(arguments)) != shlex.join(arguments):
        raise ValueError(
            "the command holds credentials, and Ray shows commands: give them by --env, as AWS_ACCESS_KEY_ID, "
            "MLFLOW_TRACKING_USERNAME and so on"
        )
    variables = environment(config.env)
    if not config.allow_local_paths:
        check_uris({**submission.uris, "out": submission.place})
        servers = [name for name in variables if name.startswith("AWS_ENDPOINT_URL") or name == "MLFLOW_TRACKING_URI"]
        check_uris({f"env {name}": variables[name] for name in servers})
    _say_where_metrics_go(submission, config)

    from pipelines.job_server import connect, explained, our_jobs  # Ray takes seconds to import

    client = connect(config.address)
    waits_for = _check_room(submission, config)
    prefix = re.sub(r"[^\w.-]", "-", f"{command}-{submission.name}")
    jobs = our_jobs(client, config.address)
    for job in jobs:
        if (job.metadata or {})["groupvit_writes"] == submission.place and not job.status.is_terminal():
            raise ValueError(
                f"{job.submission_id} is {job.status.lower()} and writes {submission.place}: follow it with `groupvit "
                f"submit logs {job.submission_id} --follow`, or stop it first"
            )
    before = [re.fullmatch(rf"{re.escape(prefix)}-(\d+)", job.submission_id or "") for job in jobs]
    job_id = f"{prefix}-{max((int(found[1]) for found in before if found), default=0) + 1}"
    metadata = {
        "groupvit": command,
        "groupvit_writes": submission.place,
        "groupvit_arguments": json.dumps(list(arguments)),
        "groupvit_flags": json.dumps(_flags_to_repeat(config)),
    }
    words = ["python", "-m", "pipelines.submitted", *waits_for, command, *arguments]
    with job_package(code=config.code, variables=variables, max_bytes=config.max_code_megabytes * 1e6) as folder:
        runtime_env: dict[str, Any] = {}
        if folder is not None:
            runtime_env = {
                "working_dir": str(folder),
                "worker_process_setup_hook": "pipelines.submitted.load_environment",
            }
        with explained(config.address):
            client.submit_job(
                entrypoint=shlex.join(words), submission_id=job_id, runtime_env=runtime_env, metadata=metadata
            )
    print(f"submitted {job_id}, which writes {submission.place}", flush=True)
    if not config.follow:
        print(f"groupvit submit logs {job_id} --follow   shows what it prints; it goes on without", flush=True)
        return {"job": job_id, "writes": submission.place}
    return _followed(client, job_id, config)


def _on_jobs(verb: str, rest: Sequence[str], config: SubmitConfig) -> dict[str, Any]:
    from pipelines.job_server import connect, our_jobs
    from pipelines.job_watch import print_job, settle, stopped_at

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
        raise ValueError(f"{name} is no job of {config.address}: give one of `groupvit submit list` (newest: {known})")
    job = matching[-1]
    job_id, metadata = str(job.submission_id), job.metadata or {}
    if verb == "status":
        print_job(job)
        if job.message:
            print(" ".join(job.message.split())[:500])
    elif verb == "logs" and config.follow:
        return _followed(client, job_id, config)
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


def _followed(client: Any, job_id: str, config: SubmitConfig) -> dict[str, Any]:
    """The job's log as it comes, then its end. PartlyDone with the job's exit code if it failed."""
    from pipelines.job_server import explained
    from pipelines.job_watch import follow_job, settle

    try:
        with explained(config.address):
            asyncio.run(follow_job(client, job_id))
    except KeyboardInterrupt:
        raise PartlyDone(f"{job_id} goes on: groupvit submit logs {job_id} --follow", {"job": job_id}, 130) from None
    job = settle(client, job_id)
    result = {"job": job_id, "status": str(job.status.value), "exit_code": job.driver_exit_code}
    if job.status != "SUCCEEDED":
        reason = " ".join((job.message or "").partition(", last available logs")[0].split())[:300]
        code = job.driver_exit_code
        raise PartlyDone(f"{job_id} {job.status.lower()}: {reason}", result, code if code and code > 0 else 1)
    return result


def _check_room(submission: Submission, config: SubmitConfig) -> list[str]:
    """Arguments that make the job wait for machines, if it has to. ValueError if they can never come."""
    from pipelines.cluster_room import check_room, shares
    from pipelines.job_server import machines
    from pipelines.submitted import MACHINES_FLAG

    present = machines(config.address)
    where = f"the cluster at {config.address}"
    if config.cluster is None:
        advice = "give less, or --cluster FILE if it can grow"
        check_room(submission.demands, present, where, advice)
        return []
    most = machines_at_most(config.cluster, gpus_first=any(demand.gpus != 0 for demand in submission.demands))
    check_room(submission.demands, most, f"{config.cluster} at most", "give less, or raise max_workers there")
    try:
        check_room(submission.demands, present, where, "")
        return []
    except ValueError:
        bundles = []
        for demand in submission.demands:
            cpus, gpus = shares(demand, most)
            bundles += [{"CPU": cpus} | ({"GPU": gpus} if gpus else {})] * demand.count
        return [MACHINES_FLAG, json.dumps({"bundles": bundles, "minutes": config.wait_minutes})]


def _say_where_metrics_go(submission: Submission, config: SubmitConfig) -> None:
    unknown = submission.uris.get("tracking.uri", "") is None and "MLFLOW_TRACKING_URI" not in config.env
    if unknown and not config.allow_local_paths:
        print(
            "metrics go where MLFLOW_TRACKING_URI of the cluster's machines says; without one they stay on the head's "
            "disk: --env MLFLOW_TRACKING_URI takes yours along",
            file=sys.stderr,
        )


def _flags_to_repeat(config: SubmitConfig) -> list[str]:
    """Flags by which `resume` submits again; the values of variables are not among them."""
    flags = [part for name in config.env for part in ("--env", name)]
    flags += ["--wait-minutes", str(config.wait_minutes)]
    flags += ["--cluster", config.cluster] if config.cluster else []
    flags += [] if config.code else ["--no-code"]
    return flags + (["--allow-local-paths"] if config.allow_local_paths else [])


def _only(rest: Sequence[str], verb: str, kind: str) -> str:
    if len(rest) != 1 or rest[0].startswith("-"):
        raise ValueError(f"submit {verb} takes one {kind}, not {shlex.join(rest) or 'none'}")
    return rest[0]


def _flag_lines() -> list[str]:
    """The flags' names and what they do."""
    import contextlib
    import io

    drawn = io.StringIO()
    with contextlib.redirect_stdout(drawn), contextlib.suppress(SystemExit):
        parse(SubmitConfig, ["--help"], prog="groupvit submit")
    return drawn.getvalue().splitlines()[1:]
