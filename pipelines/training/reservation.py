"""What Ray keeps for the workers of a run after the process that asked for it was killed.

Ray forgets the reservation of a driver only after three minutes, and until then gives its resources to no elastic run.
So the run's folder records whose the reservation is, and the next driver of the run cancels it. The placement group of
a controller stays to the end of the driver, unless the cluster has a dashboard.
"""

import json
from typing import Annotated, Any

import ray
from pydantic import Field, with_config
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from typing_extensions import TypedDict

from pipelines import documents, storage
from pipelines.documents import KEEP_OTHERS
from pipelines.runs.folder import RunFolder

_COORDINATOR = "AutoscalingCoordinator"
"""Name and namespace of the actor of Ray that keeps the reservations of a cluster."""
_SECONDS = 10.0
"""Longest wait for it."""


@with_config(KEEP_OTHERS)
class _Reservation(TypedDict):
    requester: Annotated[str, Field(pattern=r"\Atrain-[0-9a-f]{32}\z")]


def take_over(run: RunFolder, train_run_id: str) -> None:
    """Cancels the reservation of the driver of `run` before this one, and records that of this one.

    Args:
        train_run_id: Ray Train's id of the run that this driver is about to start.
    """
    uri = storage.join(run.uri, "reservation.json")
    try:
        before = documents.read(uri, _Reservation, "delete it")["requester"]
    except FileNotFoundError:
        before = None
    if before is not None:
        _cancel(before)
    storage.write_bytes(uri, (json.dumps({"requester": f"train-{train_run_id}"}) + "\n").encode())


def remove_placement_groups() -> None:
    """Removes all placement groups of this driver. To be called when no controller of it runs."""
    job = ray.get_runtime_context().get_job_id()
    for name, group in placement_group_table().items():
        if name.endswith(job) and group["state"] != "REMOVED":  # the id of the driver's job is the end of its id
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def _cancel(requester: str) -> None:
    try:
        coordinator: Any = ray.get_actor(_COORDINATOR, namespace=_COORDINATOR)
    except ValueError:  # the cluster is new
        return
    try:
        ray.get(coordinator.cancel_request.remote(requester), timeout=_SECONDS)
    except RayError as error:
        reason = str(error).splitlines()[0]
        print(f"what Ray reserved for the run's driver before cannot be freed ({reason}): it may take 3 minutes")
