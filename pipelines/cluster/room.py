"""Checks whether a cluster has, or can get, room for a job. It counts by machine, because a worker cannot be split."""

import dataclasses
import time
from collections.abc import Sequence
from typing import TypedDict

MACHINES_FLAG = "--machines"
"""Flag of `pipelines.cli.on_cluster`: the machines a job waits for, as JSON."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demand:
    """`count` processes, each of which needs its share of one machine."""

    what: str
    """Field that requests the processes, or a description of them."""
    count: int
    cpus: float
    gpus: float = 0.0
    gpus_if_any: bool = False
    """Whether to take the GPUs only if the cluster has any."""


class Machine(TypedDict):
    """CPUs and GPUs of a machine that jobs can use."""

    cpus: float
    gpus: float


def check_room(demands: Sequence[Demand], machines: Sequence[Machine], place: str, advice: str) -> None:
    """Raise ValueError, naming the first field that asks for too much, if the demands do not fit on the empty machines.

    `place` is the cluster's name in the message. `advice` says what the user can do.
    """
    free = [Machine(cpus=machine["cpus"], gpus=machine["gpus"]) for machine in machines]
    for demand in demands:
        cpus, gpus = shares(demand, machines)
        for placed in range(demand.count):
            # A process without GPUs prefers machines without GPUs. Among those, the fullest comes first.
            fitting = [machine for machine in free if machine["cpus"] >= cpus and machine["gpus"] >= gpus]
            if not fitting:
                each = f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
                others = ", beside what is above it" if demand is not demands[0] else ""
                raise ValueError(
                    f"{demand.what}={demand.count} with {each} each is more than {place} can give{others}: it has "
                    f"{describe(machines)}, with room for {placed}; {advice}"
                )
            chosen = min(fitting, key=lambda machine: (machine["gpus"] > 0 and not gpus, machine["cpus"]))
            chosen["cpus"] -= cpus
            chosen["gpus"] -= gpus


def shares(demand: Demand, machines: Sequence[Machine]) -> tuple[float, float]:
    """Return the CPUs and GPUs of each process of a demand."""
    has_gpus = any(machine["gpus"] > 0 for machine in machines)
    return demand.cpus, demand.gpus if has_gpus or not demand.gpus_if_any else 0.0


def describe(machines: Sequence[Machine]) -> str:
    """Return the machines in words, equal ones together."""
    if not machines:
        return "no machine"
    kinds: dict[tuple[float, float], int] = {}
    for machine in machines:
        kind = (machine["cpus"], machine["gpus"])
        kinds[kind] = kinds.get(kind, 0) + 1
    texts = [
        f"{count} x {cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        for (cpus, gpus), count in sorted(kinds.items())
    ]
    return ", ".join(texts)


def wait_for_machines(bundles: Sequence[dict[str, float]], minutes: float) -> None:
    """Request machines with room for the bundles from the autoscaler, and wait for them. ValueError if they do not come
    in time."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    print(f"waiting for machines with room for {len(bundles)} processes", flush=True)
    begin = time.monotonic()
    ray.init(log_to_driver=False)
    group = placement_group(list(bundles), strategy="PACK")
    try:
        if not group.wait(timeout_seconds=minutes * 60):
            raise ValueError(
                f"the machines did not come within wait_minutes={minutes:g}: see `ray status` on the head; the same "
                "command may be submitted again"
            )
    finally:
        # The autoscaler keeps idle machines for some minutes. The command takes them within seconds.
        remove_placement_group(group)
    print(f"machines are there after {time.monotonic() - begin:.0f} s", flush=True)
