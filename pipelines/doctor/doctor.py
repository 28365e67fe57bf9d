"""Checks this machine or a cluster: one line per finding, with the fix.

    groupvit doctor
    groupvit doctor --cluster 10.0.0.1:6379 --store s3://bucket/runs --tracking http://10.0.0.1:5000

On each machine of the cluster runs one process, a `Probe`, that answers questions. What it says is judged here.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.cluster.causes import root_cause
from pipelines.cluster.session import ray_cluster
from pipelines.console.findings import Finding, failure_of, show, summary_of
from pipelines.doctor import judge, services
from pipelines.doctor.config import DoctorConfig
from pipelines.doctor.facts import Facts, collect
from pipelines.doctor.probe import Probe
from pipelines.doctor.rate import rate
from pipelines.errors import PartlyDone, WorkFailedError

_NUM_CLOCK_QUESTIONS = 5
_MOST_PAIRS = 1000
"""Pairs of machines up to which each tries to reach each. Of more machines, each tries its neighbours."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster, and the process on it."""

    name: str
    address: str
    num_gpus: float
    object_store: float
    """Bytes."""
    ray_folder: str
    id: str
    probe: Any


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Check, and print the findings as they come. Returns what `--json` prints.

    Raises PartlyDone with it, with exit code 1, if there is a fault.
    """
    if config.cluster is not None:
        os.environ["RAY_ADDRESS"] = config.cluster
    findings: list[Finding] = []

    def note(more: Sequence[Finding]) -> None:
        show(more)
        findings.extend(more)

    start = time.perf_counter()
    try:
        with ray_cluster():
            seconds = time.perf_counter() - start
            nodes = _start_probes()
            where = os.environ.get("RAY_ADDRESS") or "this machine"
            text = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} of {where}, joined or started in {seconds:.0f} s"
            note([Finding(check="ray", status="OK", text=text)])
            _check_nodes(nodes, config, note)
    except (ValueError, WorkFailedError, OSError) as error:  # Ray does not start, or is not there
        note([Finding(check="ray", status="fault", text=str(error))])
        _check_this_machine(config, note)
    if config.store is not None and config.store.startswith("s3://"):
        note(services.store_clock())
    tracking = config.tracking or os.environ.get("MLFLOW_TRACKING_URI")
    if tracking:
        note([services.tracking(tracking)])
    summary = summary_of(findings)
    if (failure := failure_of(findings)) is not None:
        raise PartlyDone(failure, summary)
    return summary


def _start_probes() -> list[Node]:
    """Start a process on each machine. It takes no CPU, so that it starts beside running work."""
    nodes = []
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeManagerAddress"])
    for number, node in enumerate(alive, start=1):
        options = {
            "num_cpus": 0,
            "max_concurrency": 8,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        }
        nodes.append(
            Node(
                name=f"{node['NodeManagerAddress']} ({number})",
                address=node["NodeManagerAddress"],
                num_gpus=node["Resources"].get("GPU", 0.0),
                object_store=node["Resources"].get("object_store_memory", 0.0),
                ray_folder=str(Path(node["ObjectStoreSocketName"]).parents[2]),  # TMP/session_TIME/sockets/plasma_store
                id=node["NodeID"],
                probe=ray.remote(Probe).options(**options).remote(),
            )
        )
    return nodes


def _check_nodes(nodes: Sequence[Node], config: DoctorConfig, note: Callable[[Sequence[Finding]], None]) -> None:
    asked = [(node, node.probe.facts.remote(node.ray_folder, node.num_gpus)) for node in nodes]
    answers = _answers(asked, "node", config, note)
    facts: dict[str, Facts] = {node.name: answer for node, answer in answers}
    note(judge.versions(facts))
    for node, found in answers:
        note(_of_machine(node.name, found, node.num_gpus, node.object_store, config))
    note(judge.kinds_of_gpu(facts))
    alive = [node for node, _ in answers]
    for node in alive:
        note([judge.clock(node.name, *_clock_offset(node))])
    note(judge.credentials(facts, needs_s3=(config.store or "").startswith("s3://")))
    if len(alive) > 1:
        _check_ports(alive, config, note)
        note(rate([(node.name, node.id, node.num_gpus) for node in alive], config))
    if config.store is not None:
        num_bytes = int(1e6 * config.probe_megabytes)
        # One after the other: together they would share the store's rate.
        for node in alive:
            asked = [(node, node.probe.store.remote(config.store, num_bytes))]
            note([services.store(node.name, speed) for node, speed in _answers(asked, "store", config, note)])


def _check_this_machine(config: DoctorConfig, note: Callable[[Sequence[Finding]], None]) -> None:
    """What can be checked without Ray."""
    facts = collect(None, 0)
    note([*judge.versions({"": facts}), *_of_machine("", facts, 0, None, config)])
    note(judge.credentials({"": facts}, needs_s3=(config.store or "").startswith("s3://")))
    if config.store is not None:
        try:
            note([services.store("", services.measure_store(config.store, int(1e6 * config.probe_megabytes)))])
        except (ValueError, OSError) as error:
            note([Finding(check="store", status="fault", text=str(error))])


def _of_machine(
    node: str, facts: Facts, num_gpus: float, object_store: float | None, config: DoctorConfig
) -> list[Finding]:
    return [
        judge.gpus(node, facts, num_gpus),
        *judge.disks(node, facts, 1e9 * config.least_free_gigabytes),
        judge.shared_memory(node, facts, object_store),
        judge.descriptors(node, facts),
    ]


def _answers(
    asked: Sequence[tuple[Node, Any]], check: str, config: DoctorConfig, note: Callable[[Sequence[Finding]], None]
) -> list[tuple[Node, Any]]:
    """Return what the machines answer. An error is a fault of the check."""
    answers = []
    deadline = time.monotonic() + config.seconds_to_answer
    for node, reference in asked:
        try:
            answers.append((node, ray.get(reference, timeout=max(deadline - time.monotonic(), 0.1))))
        except GetTimeoutError:
            text, fix = f"no answer within {config.seconds_to_answer:g} s", "see `ray status` and the logs on it"
            note([Finding(check=check, node=node.name, status="fault", text=text, fix=fix)])
        except RayError as error:
            cause = root_cause(error)
            fix = "install groupvit on all machines" if "ModuleNotFound" in cause.kind else ""
            note([Finding(check=check, node=node.name, status="fault", text=cause.line, fix=fix)])
    return answers


def _clock_offset(node: Node) -> tuple[float, float]:
    """Return how many seconds a machine's clock is ahead, and the error: half the time of the fastest answer."""
    offsets: list[tuple[float, float]] = []
    for _ in range(_NUM_CLOCK_QUESTIONS):
        before, start = time.time(), time.perf_counter()
        theirs: float = ray.get(node.probe.clock.remote())
        error = (time.perf_counter() - start) / 2
        offsets.append((error, theirs - before - error))
    error, offset = min(offsets)
    return offset, error


def _check_ports(nodes: Sequence[Node], config: DoctorConfig, note: Callable[[Sequence[Finding]], None]) -> None:
    listening = _answers([(node, node.probe.listen.remote()) for node in nodes], "ports", config, note)
    places = [(node.name, node.address, port) for node, port in listening]
    asked = []
    for number, (node, _) in enumerate(listening):
        others = [place for place in places if place[0] != node.name]
        if len(places) ** 2 > _MOST_PAIRS:
            others = [places[(number + distance) % len(places)] for distance in (1, 2)]
        asked.append((node, node.probe.unreached.remote(others), len(others)))
    counts = {node.name: count for node, _, count in asked}
    for node, missing in _answers([(node, reference) for node, reference, _ in asked], "ports", config, note):
        note([judge.unreached(node.name, missing, counts[node.name])])
