"""Talks to a cluster's job server through Ray's client. An error is one line that says what to fix."""

import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from pipelines.cluster.room import Machine

_SECONDS_TO_ANSWER = 15.0
_SECONDS_TO_BEGIN = 30.0
"""Maximum time for which a new cluster lists no machine."""


def connect(address: str) -> JobSubmissionClient:
    """Return a client of the job server. ValueError if there is no server, or if it refuses access."""
    # Both would silently override the given address.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    with explained(address):
        _check_answer(address)
        return JobSubmissionClient(address)


def _check_answer(address: str) -> None:
    """Raise ConnectionError if nothing answers within 15 s. Ray's client would wait as long as the system does."""
    parts = urlsplit(address)
    if not parts.hostname or (parts.scheme in getproxies() and not proxy_bypass(parts.hostname)):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=_SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise ConnectionError(error.strerror or f"within {_SECONDS_TO_ANSWER:g} s") from None


def machines(address: str) -> list[Machine]:
    """Return the resources of the cluster's machines. If it has just started, wait up to 30 s for the first ones."""
    deadline = time.monotonic() + _SECONDS_TO_BEGIN
    while True:
        with explained(address):
            nodes: list[Any] = list_nodes(address=address, limit=10_000, detail=True)
        alive = [node.resources_total or {} for node in nodes if node.state == "ALIVE"]
        if alive or time.monotonic() > deadline:  # the job server answers before its own machine is listed
            break
        time.sleep(0.5)
    return [Machine(cpus=node.get("CPU", 0.0), gpus=node.get("GPU", 0.0)) for node in alive]


def our_jobs(client: JobSubmissionClient, address: str) -> list[JobDetails]:
    """Return the jobs submitted by `groupvit submit`, oldest first."""
    with explained(address):
        jobs = client.list_jobs()
    return sorted((job for job in jobs if "groupvit" in (job.metadata or {})), key=lambda job: job.start_time or 0)


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn errors of the job server and the connection to it into a ValueError. Also hide the log of Ray's client."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    except AuthenticationError as error:
        if "Authentication required" in str(error):
            raise ValueError(
                f"address={address}: the cluster asks for a token: set RAY_AUTH_MODE=token, and the cluster's token in "
                "~/.ray/auth_token or RAY_AUTH_TOKEN"
            ) from None
        raise ValueError(
            f"address={address}: the cluster refuses the token: put that of this cluster into ~/.ray/auth_token "
            "or RAY_AUTH_TOKEN (on AWS the one of file_mounts, on Kubernetes the secret of the cluster's name)"
        ) from None
    except (ConnectionError, requests.exceptions.RequestException, RayStateApiException) as error:
        raise ValueError(
            f"address={address}: no job server answers ({_reason(error)}): start the cluster, and tunnel to it with "
            "`ray dashboard ray-cluster.yaml` or `kubectl port-forward service/HEAD 8265`"
        ) from None
    except RuntimeError as error:
        if "already exists" in str(error):
            raise ValueError(
                f"address={address}: the same job was submitted at the same moment: see submit list"
            ) from None
        raise ValueError(f"address={address}: {_reason(error)}") from None
    finally:
        logging.disable(before)


def _reason(error: Exception) -> str:
    """Return the last line of a server's traceback, or the message of a connection error."""
    text = str(error).strip()
    if found := re.search(r"\[Errno \d+\] ([\w ]+)", text):
        return found[1]
    return text.rpartition("\n")[2][:200]
