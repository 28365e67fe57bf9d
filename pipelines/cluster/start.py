"""Starts a Ray cluster on this machine, or joins the one in RAY_ADDRESS. An error says in one line what to do."""

import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import ray

from pipelines.cluster.causes import root_cause
from pipelines.errors import WorkFailedError

_LONGEST_SOCKET = 107
"""Maximum length of a socket's path on Linux, in bytes."""
_BELOW_TEMPORARY = len("/ray/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_SECONDS_TO_ANSWER = 15.0
_LEAST_SHARED_MEMORY = 1e9
"""Minimum free shared memory, in bytes. With less, Ray keeps its objects on disk."""
_WAIT = "RAY_gcs_server_port_wait_time_s"
_PATIENCE = {
    _WAIT: "180",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_gcs_rpc_server_connect_timeout_s": "60",
}
"""Timeouts in seconds of Ray's start, for a busy machine."""
_ADVICE = "start it again or give its new address, or unset RAY_ADDRESS to start one on this machine"
_START_PROCESSES = ("gcs_server", "raylet")


def named_address() -> str | None:
    """Return the address of the cluster that RAY_ADDRESS names; None if one has to be started here."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


def join_cluster(address: str, **options: Any) -> None:
    """Join the cluster at `address`, which RAY_ADDRESS gives. ValueError, in one line, if there is none."""
    if urlsplit(address).scheme in ("http", "https"):
        raise ValueError(
            f"RAY_ADDRESS={address} is the address of a job server: give that of the cluster, like HOST:6379, or use "
            "`groupvit submit --address`"
        )
    if address != "auto":
        _check_answer(address)
    # Ray would retry for 15 minutes. A cluster that answers is joined at once.
    before = os.environ.get(_WAIT)
    os.environ.setdefault(_WAIT, "2")
    try:
        ray.init(address, **options)
    except Exception as error:
        raise ValueError(
            f"RAY_ADDRESS={address}: no cluster can be joined there ({_reason(error)}); {_ADVICE}"
        ) from error
    finally:
        if before is None:
            del os.environ[_WAIT]


def _check_answer(address: str) -> None:
    """Raise ValueError unless something listens at HOST:PORT, with or without ray:// before it, within 15 s."""
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        host, port = parts.hostname, parts.port or (10001 if "://" in address else 6379)
    except ValueError:
        host, port = None, 0
    if not host or ("://" not in address and ":" not in address):
        raise ValueError(f"RAY_ADDRESS={address} is not an address: give HOST:PORT, like 10.0.0.1:6379, or auto")
    deadline, reason = time.monotonic() + _SECONDS_TO_ANSWER, ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            socket.create_connection((host, port), timeout=left).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(min(1.0, max(deadline - time.monotonic(), 0.0)))
    raise ValueError(
        f"RAY_ADDRESS={address}: no cluster answers there within {_SECONDS_TO_ANSWER:g} s ({reason}); {_ADVICE}"
    )


def start_cluster(**options: Any) -> None:
    """Start a cluster on this machine. A failed start is retried once with longer timeouts.

    WorkFailedError, in one line, if the retry fails; ValueError for errors that more time does not fix.
    """
    if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free < _LEAST_SHARED_MEMORY:
        print(
            "/dev/shm has less than 1 GB free, so Ray keeps its objects on disk, which is slower: free some, or start "
            "the container with --shm-size=4g",
            file=sys.stderr,
        )
    options |= _in_short_folder()
    try:
        _init(options)
    except Exception as error:
        _check_start_may_succeed(error)
        print("Ray did not start in time; trying once more, with more time", file=sys.stderr, flush=True)
    else:
        return
    # Processes that Ray starts read these variables, too.
    for name, seconds in _PATIENCE.items():
        os.environ.setdefault(name, seconds)
    try:
        _init(options)
    except Exception as error:
        _check_start_may_succeed(error)
        load, memory = os.getloadavg()[0], psutil.virtual_memory().available / 1e9
        raise WorkFailedError(
            f"Ray did not start on this machine ({_reason(error)}), whose load is {load:.0f} on {os.cpu_count()} CPUs "
            f"with {memory:.1f} GB of memory free: give the command again when it is less busy"
        ) from error


def _init(options: dict[str, Any]) -> None:
    """Call `ray.init`. If it fails, end the processes it has left behind."""
    before = {child.pid for child in psutil.Process().children()}
    try:
        ray.init(address="local", **options)
    except Exception:
        ray.shutdown()
        for child in psutil.Process().children():
            if child.pid not in before and child.name() in _START_PROCESSES:
                child.kill()
        raise


def _check_start_may_succeed(error: Exception) -> None:
    """Raise ValueError for an error that the user has to fix."""
    text = str(error)
    if "minimum allowed is" in text or "total available memory" in text:
        free = psutil.virtual_memory().available / 1e6
        raise ValueError(f"this machine has {free:.0f} MB of memory free, too little for Ray: free some") from error
    if isinstance(error, (ValueError, OSError)) and not isinstance(error, (ConnectionError, TimeoutError)):
        raise ValueError(f"Ray cannot start on this machine: {_reason(error)}") from error


def _in_short_folder() -> dict[str, Any]:
    """Return options that make Ray keep its sockets in a short folder, if TMPDIR is too long for them. Objects that Ray
    spills stay in TMPDIR, which may have been chosen for its size."""
    chosen = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(os.fsencode(chosen)) + _BELOW_TEMPORARY <= _LONGEST_SOCKET:
        return {}
    for folder in _SHORT_FOLDERS:
        place = Path(folder) / f"ray-{os.getuid()}"
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                pass
            if place.stat().st_uid != os.getuid():
                continue
        except OSError:
            continue
        return {"_temp_dir": str(place), "object_spilling_directory": chosen}
    raise ValueError(
        f"TMPDIR={chosen} is too long for Ray's sockets, and none of {', '.join(_SHORT_FOLDERS)} can be written: give "
        f"a folder of at most {_LONGEST_SOCKET - _BELOW_TEMPORARY} bytes, by RAY_TMPDIR"
    )


def _reason(error: Exception) -> str:
    """Return the first sentence of Ray's message."""
    cause = root_cause(error)
    return (cause.message or cause.line).partition(". ")[0][:200]
