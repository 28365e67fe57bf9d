"""Starts the page on Ray Serve, prints its URL, and stops it.

groupvit app --checkpoint runs/demo [--examples data/stamps/validation] [--host 127.0.0.1] [--port 8000]
"""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig

from groupvit.checkpoint import load, load_state
from groupvit.protocols import protocol_of
from pipelines import storage
from pipelines.cluster.session import check_room, ray_cluster, starts_here
from pipelines.runs.checkpoints import local_checkpoint, newest_checkpoint
from pipelines.serving.app.config import MEGABYTE, AppConfig
from pipelines.serving.app.examples import Examples, read_examples
from pipelines.serving.app.server import APP_NAME, MAX_WAITING, PageSettings, application

LOOPBACK_NAMES = ("localhost", "127.0.0.1")


def run_app(config: AppConfig) -> dict[str, Any]:
    """Serves the page until Ctrl-C. Returns its URL and its checkpoint. Raises ValueError for invalid arguments."""
    checkpoint = newest_checkpoint(storage.absolute(config.checkpoint))
    examples = read_examples(config.examples) if config.examples is not None else Examples()
    settings = PageSettings(
        model=_describe(checkpoint, config, examples),
        examples=examples.images,
        allowed_hosts=(*LOOPBACK_NAMES, config.host) if config.is_private else ("*",),
        max_image_bytes=config.max_upload_megabytes * MEGABYTE,
        max_at_once=(1 + MAX_WAITING) * config.num_replicas,
    )
    port = _free_port(config.host, config.port)
    url = f"http://{config.host}:{port}/"
    if not config.is_private:
        print(
            f"groupvit app: warning: host={config.host} lets everybody in who can reach this machine; there is no "
            "password and no encryption",
            file=sys.stderr,
        )
    print("groupvit app: starting ...", file=sys.stderr, flush=True)
    app = application(
        settings,
        checkpoint=checkpoint,
        protocol=config.protocol,
        precision=config.precision,
        num_replicas=config.num_replicas,
        gpus=config.gpus_per_replica,
        num_threads=max((os.cpu_count() or 1) // config.num_replicas, 1),
    )
    if not config.show_logs:
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports to Ray
    own_cluster = starts_here()
    try:
        with ray_cluster(least_cpus=config.num_replicas + 1, show_logs=config.show_logs), _stopped_by_sigterm():
            try:
                _check_room(config)
                _start(app, config, port)
                print(f"GroupViT is at {url} (Ctrl-C stops it)", flush=True)
                threading.Event().wait()
            finally:
                if not own_cluster:  # our own cluster ends as a whole
                    serve.delete(APP_NAME)
    except KeyboardInterrupt:
        pass
    print("groupvit app: stopped", file=sys.stderr)
    return {"url": url, "checkpoint": checkpoint}


def _describe(checkpoint: str, config: AppConfig, examples: Examples) -> dict[str, Any]:
    """Returns the JSON of /api/model. Raises ValueError for an invalid checkpoint."""
    with local_checkpoint(checkpoint) as folder:
        state, model = load_state(folder), load(folder)
    segmentation = protocol_of(config.protocol, model, state)
    license_ = state.get("license")
    parts = [part for part in checkpoint.rstrip("/").split("/") if part != "checkpoints"]
    return {
        "checkpoint": "/".join(parts[-2:]),
        "license": license_ if isinstance(license_, str) else None,
        "stages": list(model.config.image.num_output_groups),
        "protocol": config.protocol,
        "background": segmentation.background_threshold is not None,
        "threshold": segmentation.background_threshold,
        "words": list(examples.words),
        "examples": [example.name for example in examples.images],
        "max_upload_megabytes": config.max_upload_megabytes,
    }


def _free_port(host: str, port: int) -> int:
    """Returns the port, or a free one for 0. Raises ValueError if it is unavailable: Serve would write pages of log."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind((host, port))
            return taken.getsockname()[1]
    except PermissionError:
        raise ValueError(f"port={port} is for the system alone: give one from 1024 on, like --port 8000") from None
    except socket.gaierror:
        raise ValueError(
            f"host={host} is not an address or name that is known here: give one, like 127.0.0.1"
        ) from None
    except OSError as error:
        if error.strerror and "assign" in error.strerror:
            raise ValueError(f"host={host} is not an address of this machine: give one, like 127.0.0.1") from None
        raise ValueError(
            f"port={port} at {host} is in use: stop what uses it, or give another, like --port {port + 1}"
        ) from None


def _check_room(config: AppConfig) -> None:
    each = {"CPU": 1.0} | ({"GPU": config.gpus_per_replica} if config.gpus_per_replica else {})
    check_room("num_replicas", config.num_replicas, each, ray.cluster_resources(), "the Ray cluster")


def _start(app: serve.Application, config: AppConfig, port: int) -> None:
    quiet = LoggingConfig(log_level="INFO" if config.show_logs else "ERROR", enable_access_log=config.show_logs)
    http = HTTPOptions(host=config.host, port=port)
    serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=http, logging_config=quiet)
    serve.run(app, name=APP_NAME, route_prefix="/", logging_config=quiet)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the context as Ctrl-C does. Enter it after Ray has started, which sets a handler of its own."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
