"""Watches a submitted job: its log as it arrives, its state, and where it will resume."""

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime

import aiohttp
from ray.job_submission import JobDetails, JobSubmissionClient

from pipelines.runs.folder import RunFolder
from pipelines.storage import StorageError

_SETTLE_SECONDS = 60.0
_PATIENCE_SECONDS = 300.0
"""Maximum time without an answer from the job server while a log is followed."""


async def follow_job(client: JobSubmissionClient, job_id: str) -> None:
    """Print the job's log from its beginning until the job ends. After a lost connection, continue without repeating
    text. Raise the connection's error if it stays lost."""
    printed, deadline = 0, time.monotonic() + _PATIENCE_SECONDS
    while True:
        seen = 0
        try:
            async for text in client.tail_job_logs(job_id):
                fresh = text[max(0, printed - seen) :]
                seen += len(text)
                printed = max(printed, seen)
                print(fresh, end="", flush=True)
                deadline = time.monotonic() + _PATIENCE_SECONDS
            if client.get_job_status(job_id).is_terminal():
                return
        except (aiohttp.ClientError, RuntimeError, ConnectionError, OSError):
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(1)


def settle(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """Wait up to a minute for the job to end, and return its state."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    job = client.get_job_info(job_id)
    while not job.status.is_terminal() and time.monotonic() < deadline:
        time.sleep(0.5)
        job = client.get_job_info(job_id)
    return job


def print_job(job: JobDetails) -> None:
    """Print the job in one line."""
    start = datetime.fromtimestamp((job.start_time or 0) / 1000).strftime("%Y-%m-%d %H:%M:%S")
    seconds = ((job.end_time or time.time() * 1000) - (job.start_time or 0)) / 1000
    code = "" if job.driver_exit_code is None else f", exit code {job.driver_exit_code}"
    writes = (job.metadata or {}).get("groupvit_writes")
    print(f"{job.submission_id}  {job.status.value}{code}  since {start}, {seconds:.0f} s  writes {writes}")


def stopped_at(metadata: Mapping[str, str]) -> str:
    """Say where a stopped job will resume, as far as it can be seen from here."""
    if metadata["groupvit"] != "pretrain":
        return f"what is whole in {metadata['groupvit_writes']} is kept, and it continues from there"
    try:
        step = RunFolder(metadata["groupvit_writes"]).latest_step()
    except (StorageError, ValueError):
        return "it will continue from its newest checkpoint (which cannot be read from here)"
    return f"it will continue from step {step}" if step else "it has no checkpoint yet, and will begin anew"
