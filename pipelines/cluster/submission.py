"""A command to submit to a cluster, and its checks."""

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from pipelines.cluster.config import SubmitConfig
from pipelines.cluster.package import environment
from pipelines.cluster.room import Demand
from pipelines.provenance import redact


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """A command that was validated."""

    command: str
    arguments: tuple[str, ...]
    name: str
    """Readable name: that of the run, or of the folder that is written."""
    place: str
    """URI that the command writes. Two jobs must not write the same one."""
    uris: Mapping[str, str | None]
    """Paths, URIs and addresses in the fields. The cluster must be able to reach them."""
    demands: tuple[Demand, ...]


def check_submission(submission: Submission, config: SubmitConfig) -> None:
    """Raise ValueError for what would fail on the cluster or show a secret there. Print where metrics go if none is
    set."""
    line = shlex.join(submission.arguments)
    if redact(line) != line:
        raise ValueError(
            "the command holds credentials, and Ray shows commands: give them by --env, as AWS_ACCESS_KEY_ID, "
            "MLFLOW_TRACKING_USERNAME and so on"
        )
    variables = environment(config.env)
    if not config.allow_local_paths:
        _check_uris({**submission.uris, "out": submission.place})
        servers = [name for name in variables if name.startswith("AWS_ENDPOINT_URL") or name == "MLFLOW_TRACKING_URI"]
        _check_uris({f"env {name}": variables[name] for name in servers})
    _say_where_metrics_go(submission, config)


def _check_uris(uris: Mapping[str, Any]) -> None:
    """Raise ValueError for a path or an address that is missing, or means something else, on another machine."""
    for field, uri in uris.items():
        if uri is None:
            continue
        if uri.startswith(("file:", "sqlite:")) or "://" not in uri:
            raise ValueError(
                f"{field}={uri} is on this machine, where the cluster cannot see it: give s3://... (for tracking "
                "http://...), or --allow-local-paths if all its machines share this disk"
            )
        host = uri.partition("://")[2].partition("/")[0].rpartition("@")[2]
        if host.startswith(("127.", "localhost", "[::1]")):
            raise ValueError(
                f"{field}={uri} is a server of this machine, which to the cluster's machines are themselves: give an "
                "address they can reach, or --allow-local-paths if the cluster is this machine"
            )


def _say_where_metrics_go(submission: Submission, config: SubmitConfig) -> None:
    unknown = submission.uris.get("tracking.uri", "") is None and "MLFLOW_TRACKING_URI" not in config.env
    if unknown and not config.allow_local_paths:
        print(
            "metrics go where MLFLOW_TRACKING_URI of the cluster's machines says; without one they stay on the head's "
            "disk: --env MLFLOW_TRACKING_URI takes yours along",
            file=sys.stderr,
        )
