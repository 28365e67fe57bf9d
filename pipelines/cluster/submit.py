"""Submits a command to a cluster's job server.

Before the upload, the cluster is asked whether it has room. A job is named COMMAND-NAME-ATTEMPT after what it writes.
"""

import asyncio
import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from pipelines.cluster.config import SubmitConfig
from pipelines.cluster.file import machines_at_most
from pipelines.cluster.jobs import connect, explained, machines, our_jobs
from pipelines.cluster.package import environment, job_package
from pipelines.cluster.room import MACHINES_FLAG, check_room, shares
from pipelines.cluster.submission import Submission
from pipelines.cluster.watch import follow_job, settle
from pipelines.errors import PartlyDone

_SECONDS_TO_STOP = "300"
"""Time between SIGTERM and SIGKILL for a job that is stopped. Ray's 3 s are too short for a step and a checkpoint."""


def submit(submission: Submission, config: SubmitConfig, runner: Sequence[str]) -> dict[str, Any]:
    """Submit a validated command, and return what `--json` prints.

    Args:
        runner: Start of the job's command line. The machines to wait for, the command and its arguments follow.

    Raises:
        ValueError: There is no room, or an unfinished job writes the same place.
        PartlyDone: A followed job failed. Has the job's exit code.
    """
    variables = environment(config.env)
    client = connect(config.address)
    waits_for = _check_room(submission, config)
    prefix = re.sub(r"[^\w.-]", "-", f"{submission.command}-{submission.name}")
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
        "groupvit": submission.command,
        "groupvit_writes": submission.place,
        "groupvit_arguments": json.dumps(submission.arguments),
        "groupvit_flags": json.dumps(flags_to_repeat(config)),
    }
    words = [*runner, *waits_for, submission.command, *submission.arguments]
    with job_package(code=config.code, variables=variables, max_bytes=config.max_code_megabytes * 1e6) as folder:
        runtime_env: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": _SECONDS_TO_STOP}}
        if folder is not None:
            runtime_env |= {
                "working_dir": str(folder),
                "worker_process_setup_hook": "pipelines.cluster.package.load_environment",
            }
        with explained(config.address):
            client.submit_job(
                entrypoint=shlex.join(words), submission_id=job_id, runtime_env=runtime_env, metadata=metadata
            )
    print(f"submitted {job_id}, which writes {submission.place}", flush=True)
    if not config.follow:
        print(f"groupvit submit logs {job_id} --follow   shows what it prints; it goes on without", flush=True)
        return {"job": job_id, "writes": submission.place}
    return followed(client, job_id, config)


def followed(client: Any, job_id: str, config: SubmitConfig) -> dict[str, Any]:
    """Print the job's log as it arrives, and return how it ended. PartlyDone with the job's exit code if it failed."""
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
    """Return arguments that make the job wait for machines, if it has to. ValueError if they can never come."""
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


def flags_to_repeat(config: SubmitConfig) -> list[str]:
    """Return the flags with which `resume` submits again. They do not contain the values of variables."""
    flags = [part for name in config.env for part in ("--env", name)]
    flags += ["--wait-minutes", str(config.wait_minutes), "--max-code-megabytes", str(config.max_code_megabytes)]
    flags += ["--cluster", config.cluster] if config.cluster else []
    flags += [] if config.code else ["--no-code"]
    return flags + (["--allow-local-paths"] if config.allow_local_paths else [])
