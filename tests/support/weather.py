"""A Ray cluster of several machines, with an object store and an MLflow server, and what may happen to each."""

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.support.answers import answer_in, telling
from tests.support.machines import HOME, Machine, Network

ROOT = Path(__file__).parents[2]
BIN = Path(sys.prefix) / "bin"
PYTHON = str(BIN / "python")
STORE_PORT, MLFLOW_PORT, RAY_PORT = 8333, 5000, 6379
_SOONER = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_memory_monitor_refresh_ms": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",
}
"""A node is given up after seconds, and what others use of this machine's memory is not a node's affair."""
_NODES = """
import ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
answer = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
"""


class Cluster:
    """A head that the commands run on, nodes that come and go, `store` and `tracking`."""

    def __init__(self, network: Network, *, head_cpus: int, node_cpus: int) -> None:
        self._network, self._node_cpus = network, node_cpus
        self.head, self.store, self.tracking = (network.add(name) for name in ("head", "store", "tracking"))
        self.nodes: list[Machine] = []
        self.variables = _SOONER | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{BIN}:/usr/bin:/bin:/usr/sbin:/sbin",
            "MLFLOW_TRACKING_URI": f"http://{self.tracking.address}:{MLFLOW_PORT}",
        }
        self.start_mlflow()
        self.start_store()
        settings = (self.store.home / "environment").read_text()
        self.variables |= dict(re.findall(r"^export (\w+)=(.*)$", settings, re.MULTILINE))
        self._start_ray(self.head, head_cpus, "--head", f"--port={RAY_PORT}", "--include-dashboard=false")
        self.wait(lambda: _listens(self.head, RAY_PORT), "the head does not listen")
        joinable = self.head.folder / "tmp/ray/ray_current_cluster"  # written when all of the head runs
        self.wait(joinable.exists, "the head does not start")

    def start_store(self) -> None:
        """Starts SeaweedFS, and waits for it."""
        address = {"OBJECT_STORE_HOST": self.store.address, "OBJECT_STORE_PORT": str(STORE_PORT)}
        variables = {"WEED": str(BIN / "weed"), "OBJECT_STORE_HOME": HOME, **address}
        serve = str(ROOT / "infra/object_store/serve")
        self.store.start(serve, log=self.store.folder / "weed.log", variables=variables)
        self.wait(lambda: _listens(self.store, STORE_PORT), "the store does not listen")

    def start_mlflow(self) -> None:
        command = [PYTHON, "-m", "mlflow", "server", "--host", "0.0.0.0", "--port", str(MLFLOW_PORT), "--workers", "1"]
        command += ["--allowed-hosts", f"{self.tracking.address}:{MLFLOW_PORT}"]
        command += ["--backend-store-uri", f"sqlite:///{HOME}/mlflow.db", "--artifacts-destination", f"{HOME}/files"]
        variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.tracking.start(*command, log=self.tracking.folder / "mlflow.log", variables=variables)

    def add_node(self, *, prepare: str = "true", variables: Mapping[str, str] | None = None) -> Machine:
        """Adds a machine, and waits until Ray has it. `prepare`, a line of bash, runs first; Ray gets the variables."""
        node = self._network.add(f"node-{len(self._network.machines)}")
        node.run("bash", "-c", prepare)
        self._start_ray(node, self._node_cpus, f"--address={self.head.address}:{RAY_PORT}", variables=variables)
        self.wait(lambda: node.address in self.node_ids(), f"{node.name} has not joined")
        self.nodes.append(node)
        return node

    def node_ids(self) -> dict[str, str]:
        """Address → Ray's id of the nodes that Ray takes to be alive."""
        return self.ask(_NODES)

    def drain(self, node: Machine, seconds: int = 60) -> None:
        """Says that a node will be gone in some seconds, as clouds do before they take a spot machine."""
        command = ["ray", "drain-node", "--address", f"{self.head.address}:{RAY_PORT}", "--reason-message", "test"]
        command += ["--node-id", self.node_ids()[node.address], "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        self.on_head(*command, "--deadline-remaining-seconds", str(seconds))

    def remove(self, node: Machine) -> None:
        """Ends a node with all its processes, at once."""
        self.nodes.remove(node)
        node.end()

    def clear(self) -> None:
        """Ends all runs and nodes but the head."""
        kill(self.head, "pipelines.cli pretrain")
        for machine in self._network.machines:
            if machine not in (self.head, self.store, self.tracking):
                machine.end()
        self.nodes.clear()
        self.wait(lambda: list(self.node_ids()) == [self.head.address], "nodes are still there")

    def on_head(self, *command: str, timeout: float = 240) -> str:
        return self.head.run(*command, cwd=str(ROOT), timeout=timeout, variables=self.variables)

    def ask(self, code: str, *arguments: str) -> Any:
        """What Python code names `answer` on the head."""
        return answer_in(self.on_head(PYTHON, "-c", telling(code), *arguments))

    def start_on_head(self, *command: str, log: Path) -> "subprocess.Popen[str]":
        variables = self.variables | {"RAY_ADDRESS": f"{self.head.address}:{RAY_PORT}"}
        return self.head.start(*command, log=log, cwd=str(ROOT), variables=variables)

    def wait(self, condition: Callable[[], bool], otherwise: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, otherwise
            time.sleep(0.2)

    def _start_ray(
        self, machine: Machine, num_cpus: int, *options: str, variables: Mapping[str, str] | None = None
    ) -> None:
        command = ["ray", "start", "--block", f"--node-ip-address={machine.address}", f"--num-cpus={num_cpus}"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats", *options]
        told = self.variables | dict(variables or {})
        machine.start(*command, log=machine.folder / "ray.log", cwd=str(ROOT), variables=told)


def kill(machine: Machine, word: str, number: signal.Signals = signal.SIGKILL, *, most: int | None = None) -> int:
    """Sends a signal to the processes of a machine with `word` in their command, at most so many. Returns how many."""
    output = machine.run("ps", "-e", "-o", "pid=,args=")
    found = [line.split(None, 1) for line in output.splitlines() if word in line]
    ids = [process for process, command in found if not command.startswith(("ps ", "nsenter "))][:most]
    if ids:
        machine.run("bash", "-c", f"kill -{int(number)} {' '.join(ids)} 2>/dev/null || true")
    return len(ids)


def _listens(machine: Machine, port: int) -> bool:
    probe = f"exec 3<>/dev/tcp/{machine.address}/{port}"
    inside = ["nsenter", "-t", str(machine.init), "--net", "bash", "-c", probe]
    return subprocess.run(inside, capture_output=True, check=False).returncode == 0


def flags_of(values: Mapping[str, object]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def shared_folder() -> str:
    """A folder that all machines see: not below /tmp, which each has for itself."""
    folder = f"/var/tmp/groupvit-weather-{os.getpid()}-{secrets.token_hex(4)}"
    os.makedirs(folder)
    return folder
