"""What the comments of ray-cluster.yaml say of Ray's autoscaler, asked of the autoscaler itself.

It has no public interface for that; when a new Ray moves these parts, this test says that the comments want a look.
"""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount  # pyright: ignore
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent  # pyright: ignore

CLUSTER = yaml.safe_load((Path(__file__).parents[2] / "ray-cluster.yaml").read_text())
FOUND = {"m6i.2xlarge": {"CPU": 8}, "m6i.4xlarge": {"CPU": 16}, "g5.12xlarge": {"CPU": 48, "GPU": 4}}
"""What Ray finds on the machines."""


def launches(
    demand: dict[str, int], count: int, *, failed: dict[str, float] | None = None, spot: bool = True
) -> dict[str, int]:
    """Machines the autoscaler asks for, by type; `failed` has 0 for a type that just failed, 1 for one that is well."""
    types = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=0,
            max_worker_nodes=kind["max_workers"] if spot or name != "gpu-spot" else 0,
            resources={key: float(value) for key, value in FOUND[kind["node_config"]["InstanceType"]].items()},
            priority=kind.get("priority", 0),
        )
        for name, kind in CLUSTER["available_node_types"].items()
        if name != CLUSTER["head_node_type"]
    }
    request = ResourceRequestByCount(
        request=ResourceRequestUtil.make({key: float(value) for key, value in demand.items()}), count=count
    )
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            resource_requests=[request],
            node_type_configs=types,
            max_num_nodes=CLUSTER["max_workers"] + 1,
            recoverable_resource_availabilities=failed or {},
            cloud_resource_availabilities=failed or {},
        )
    )
    assert not reply.infeasible_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch}


@pytest.mark.parametrize(
    ("demand", "count", "options", "expected"),
    [
        ({"GPU": 1, "CPU": 8}, 16, {}, {"gpu-spot": 4}),
        ({"GPU": 1, "CPU": 8}, 24, {}, {"gpu-spot": 4, "gpu-on-demand": 2}),
        ({"GPU": 1, "CPU": 8}, 16, {"failed": {"gpu-spot": 0.0}}, {"gpu-on-demand": 4}),
        ({"GPU": 1, "CPU": 8}, 16, {"failed": {"gpu-spot": 0.5}}, {"gpu-on-demand": 4}),
        ({"GPU": 1, "CPU": 8}, 16, {"failed": {"gpu-spot": 1.0}}, {"gpu-spot": 4}),
        ({"GPU": 1, "CPU": 8}, 16, {"spot": False}, {"gpu-on-demand": 4}),
        ({"CPU": 1}, 32, {}, {"cpu": 2}),
        ({"CPU": 1}, 65, {}, {"cpu": 4, "gpu-spot": 1}),
    ],
    ids=[
        "all well",
        "more than spot may be",
        "spot failed",
        "spot recovers",
        "spot is well again",
        "spot off",
        "no GPU",
        "more CPUs than the machines without GPUs have",
    ],
)
def test_spot_first_then_on_demand(demand, count, options, expected):
    assert launches(demand, count, **options) == expected


def test_what_counts_as_failed():
    """A machine that was granted and did not come up; not one that was refused."""
    monitor = CloudResourceMonitor()
    refused = InstanceUpdateEvent(instance_type="gpu-spot", new_instance_status=Instance.ALLOCATION_FAILED)
    monitor.notify([refused])
    assert monitor.get_recoverable_resource_availabilities() == {}
    timed_out = InstanceUpdateEvent(instance_type="gpu-spot", new_instance_status=Instance.ALLOCATION_TIMEOUT)
    monitor.notify([timed_out])
    assert monitor.get_recoverable_resource_availabilities() == {"gpu-spot": 0.0}
