"""A cluster as a user has it: `ray up` on machines with addresses of their own, `groupvit submit` from another one, a
node that is cut off in the middle, `ray down`.

The cluster file is ray-cluster.yaml itself, changed only where machines that are there differ from AWS's.
"""

import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.answers import answer_in, telling
from tests.support.machines import HOME, Machine, Network, missing_for_machines

ROOT = Path(__file__).parents[2]
BIN = Path(sys.prefix) / "bin"
PYTHON = str(BIN / "python")
NUM_STEPS, CADENCE, CUT_AT = 40, 4, 6
STORE_PORT, MLFLOW_PORT = 8333, 5000

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.end_to_end,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(missing_for_machines() is not None, reason=str(missing_for_machines())),
]


def of_given_machines(head: Machine, workers: list[Machine], key: str) -> dict[str, Any]:
    """ray-cluster.yaml for machines that are there, with Ray and what else the image has on them."""
    cluster = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())
    cluster |= {
        "provider": {
            "type": "local",
            "head_ip": head.address,
            "worker_ips": [worker.address for worker in workers],
        },
        "auth": {"ssh_user": "root", "ssh_private_key": key},
        "max_workers": len(workers),
        "setup_commands": ["cd ~/groupvit && test -f pyproject.toml && test ! -e .git"],
    }
    options = cluster.pop("docker")["run_options"]
    exports = [f"export {option.removeprefix('--env ')}" for option in options if option.startswith("--env ")]
    for machine in (head, *workers):
        (machine.home / ".profile").write_text("\n".join([f"export PATH={BIN}:$PATH", *exports, ""]))
    del cluster["available_node_types"], cluster["head_node_type"]
    # The head does no work, as the file says for AWS; a worker has room for one training process (2 CPUs), not for two.
    for name, cpus in (("head", 0), ("worker", 3)):
        commands = cluster[f"{name}_start_ray_commands"]
        assert commands[-1].rstrip().split()[-1].startswith("--")
        commands[-1] += f" --num-cpus={cpus} --object-store-memory=200000000"
    return cluster


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.chdir(ROOT)
    with Network(tmp_path / "machines") as network:
        yield network


def serve_objects(machine: Machine) -> dict[str, str]:
    """SeaweedFS on a machine; the variables by which clients find it."""
    settings = {"OBJECT_STORE_HOME": HOME, "OBJECT_STORE_HOST": machine.address, "OBJECT_STORE_PORT": str(STORE_PORT)}
    serve = str(ROOT / "infra/object_store/serve")
    machine.start(serve, log=machine.folder / "weed.log", variables={"WEED": str(BIN / "weed")} | settings)
    wait_for(machine, STORE_PORT)
    return dict(re.findall(r"^export (\w+)=(.*)$", (machine.home / "environment").read_text(), re.MULTILINE))


def serve_mlflow(machine: Machine) -> str:
    command = [PYTHON, "-m", "mlflow", "server", "--host", "0.0.0.0", "--port", str(MLFLOW_PORT), "--workers", "1"]
    command += ["--allowed-hosts", f"{machine.address}:{MLFLOW_PORT}"]
    command += ["--backend-store-uri", f"sqlite:///{HOME}/mlflow.db", "--artifacts-destination", f"{HOME}/artifacts"]
    machine.start(
        *command, log=machine.folder / "mlflow.log", variables={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    )
    return f"http://{machine.address}:{MLFLOW_PORT}"


def wait_for(machine: Machine, port: int) -> None:
    deadline = time.monotonic() + 120
    probe = f"exec 3<>/dev/tcp/{machine.address}/{port}"
    while subprocess.run(
        ["nsenter", "-t", str(machine.init), "--net", "bash", "-c", probe], capture_output=True, check=False
    ).returncode:
        assert time.monotonic() < deadline, f"nothing listens on {machine.name}:{port}"
        time.sleep(0.2)


MAKE_DATA = """
import os
from pyarrow import fs
from tests.support.small_run import write_noise
store = fs.S3FileSystem(allow_bucket_creation=True, endpoint_override=os.environ["AWS_ENDPOINT_URL"])
store.create_dir("bucket")
print(write_noise("s3://bucket/data"))
"""

WHERE_WORKERS_ARE = """
import time
from ray.util.state import list_actors, list_nodes
from ray.util.state.exception import RayStateApiException
address, answer = "http://127.0.0.1:8265", []
while len(answer) < 2:
    time.sleep(0.5)
    try:
        nodes = {node.node_id: node.node_ip for node in list_nodes(address=address)}
        actors = list_actors(address=address, filters=[("state", "=", "ALIVE")], detail=True)
    except RayStateApiException:  # a busy machine answers late
        continue
    found = [actor.node_id for actor in actors if actor.class_name == "RayTrainWorker"]
    answer = [nodes[node] for node in found if node in nodes]
"""

NODES = """
from ray.util.state import list_nodes
nodes = list_nodes(address="http://127.0.0.1:8265", detail=True)
answer = [[node.node_ip, node.resources_total.get("CPU", 0)] for node in nodes if node.state == "ALIVE"]
"""

OUTCOME = """
from mlflow import MlflowClient
from pipelines.runs.folder import RunFolder
client = MlflowClient()
runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
answer = {
    "runs": [[run.info.run_name, run.info.status] for run in runs],
    "steps": [metric.step for metric in client.get_metric_history(runs[0].info.run_id, "train/loss")],
    "checkpoints": RunFolder("s3://bucket/runs/cut").checkpoint_steps(),
}
"""


def ray_processes(machine: Machine) -> list[str]:
    return [
        line for line in machine.processes() if re.search(r"raylet|gcs_server|ray::|ray/dashboard|ray/autoscaler", line)
    ]


def test_a_job_survives_a_node_that_is_cut_off(network: Network, tmp_path: Path) -> None:
    user, head, store, tracking = (network.add(name) for name in ("user", "head", "store", "tracking"))
    workers = [network.add(f"worker-{number}") for number in range(3)]
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", user.home / "key"], check=True)
    for machine in (head, *workers):
        machine.serve_ssh(user.home / "key")
    tracking_uri = serve_mlflow(tracking)  # which takes its time to start
    store_variables = serve_objects(store)
    variables = store_variables | {"MLFLOW_TRACKING_URI": tracking_uri, "PYTHONPATH": str(ROOT)}
    variables |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{BIN}:/usr/bin:/bin:/usr/sbin"}

    def type_in(*command: str, timeout: float = 300, **more: str) -> str:
        """What the user's command prints, in the folder of the repository."""
        return user.run(*command, cwd=str(ROOT), timeout=timeout, variables=variables | more)

    # As the head of ray-cluster.yaml tells.
    type_in("ray", "get-auth-token", "--generate")
    settings = user.home / ".config/groupvit/cluster.env"
    settings.parent.mkdir(parents=True)
    # A node is given up after seconds here, so that the test does not wait for it; so are workers that lost the head.
    sooner = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}
    sooner |= {"RAY_health_check_timeout_ms": "2000", "RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
    # The newer autoscaler counts the head among machines that are there, and leaves one of the workers out (Ray 2.60).
    # All the machines together have the processors of one: threads that wait for others must not hold them.
    sooner |= {"RAY_enable_autoscaler_v2": "0", "OMP_WAIT_POLICY": "PASSIVE"}
    sooner |= {"RAY_memory_monitor_refresh_ms": "0"}  # nor is what others use of its memory a node's affair
    settings.write_text("".join(f"{name}={value}\n" for name, value in (store_variables | sooner).items()))
    cluster_file = user.home / "cluster.yaml"
    cluster_file.write_text(
        yaml.safe_dump(of_given_machines(head, workers, f"{HOME}/key"), sort_keys=False, width=1000)
    )
    seen_by_user = f"{HOME}/cluster.yaml"
    type_in("groupvit", "submit", "check-cluster", seen_by_user)
    type_in("ray", "up", "--yes", seen_by_user, RAY_UP_enable_autoscaler_v2="0")
    type_in(PYTHON, "-c", MAKE_DATA)
    user.start("ray", "dashboard", seen_by_user, log=user.folder / "tunnel.log", cwd=str(ROOT), variables=variables)
    wait_for_nodes(type_in, {worker.address: 3.0 for worker in workers} | {head.address: 0.0})
    wait_for(tracking, MLFLOW_PORT)

    command = ["groupvit", "submit", "pretrain", "debug", "--data", "s3://bucket/data"]
    command += ["--training.runs-folder", "s3://bucket/runs", "--training.run-name", "cut"]
    command += ["--training.num-workers", "2", "--training.num-steps", str(NUM_STEPS), "--env", "MLFLOW_TRACKING_URI"]
    command += ["--training.checkpoint-every-n-steps", str(CADENCE), "--training.keep-checkpoints", "None"]
    with pytest.raises(AssertionError, match=r"training.num_workers=16 .* has 1 x 0 CPUs, 3 x 3 CPUs, with room for 3"):
        type_in(*command, "--training.cpus-per-worker", "2", "--training.num-workers", "16", "--ingest.slice-size", "2")
    log = user.folder / "followed.log"
    following = [*command, "--training.cpus-per-worker", "2", "--follow"]
    # Steps are soon done: where the workers are has to be known before the first.
    looking = user.start(PYTHON, "-c", telling(WHERE_WORKERS_ARE), cwd=str(ROOT), variables=variables)
    followed = user.start(*following, log=log, cwd=str(ROOT), variables=variables)
    seen = looking.communicate(timeout=300)[0]
    assert looking.returncode == 0, seen
    addresses = answer_in(seen)
    cut = next(worker for worker in workers if worker.address == addresses[0])
    tracking.unplug()  # so that the node that is cut off has not sent what it should
    wait_for_step(log, CUT_AT, followed)
    cut.unplug()
    tracking.plug(network.gateway)
    assert len(set(addresses)) == len(addresses) == 2
    assert set(addresses) < {worker.address for worker in workers}
    assert followed.wait(timeout=400) == 0, log.read_text()
    text = log.read_text()
    assert "training from the start on 2 x cpu" in text
    assert re.search(r"training from step \d+ on 2 x cpu", text), text

    outcome = answer_in(type_in(PYTHON, "-c", telling(OUTCOME)))
    assert outcome["runs"] == [["cut", "FINISHED"]]
    assert sorted(outcome["steps"]) == list(range(1, NUM_STEPS + 1))
    assert outcome["checkpoints"] == list(range(CADENCE, NUM_STEPS + 1, CADENCE))

    cut.plug(network.gateway)
    assert ray_processes(head)
    type_in("ray", "down", "--yes", seen_by_user)
    # `ray down` ends the head of such a cluster; its workers see that, and go, the last of their agents after a minute.
    deadline = time.monotonic() + 180
    while left := {m.name: ray_processes(m) for m in (head, *workers) if ray_processes(m)}:
        assert time.monotonic() < deadline, left
        time.sleep(1)


def wait_for_nodes(type_in: Any, expected: dict[str, float]) -> None:
    deadline, found = time.monotonic() + 400, {}
    while found != expected:
        assert time.monotonic() < deadline, f"the cluster has {found}"
        with contextlib.suppress(AssertionError):  # the tunnel is not there yet
            found = dict(answer_in(type_in(PYTHON, "-c", telling(NODES))))


def wait_for_step(log: Path, step: int, alive: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not any(int(found) >= step for found in re.findall(r"^step (\d+)/", log.read_text(), re.MULTILINE)):
        assert alive.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_nothing_is_left_of_a_network(tmp_path: Path) -> None:
    with Network(tmp_path / "machines") as network:
        machine = network.add("one")
        sleeping = machine.start("sleep", "1234.5")
        held = Path(f"/proc/{machine.init}/ns/net").readlink()
        assert len(processes_in(held)) >= 2
    assert sleeping.wait(timeout=60)  # killed, and ours to reap: it is not what is left
    deadline = time.monotonic() + 60
    while left := processes_in(held):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if str(tmp_path) in line]
    shutil.rmtree(tmp_path / "machines")


def processes_in(network: Path) -> list[Path]:
    """Folders in /proc of the processes in a network namespace."""
    found = []
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if link.readlink() == network:
                found.append(link.parent.parent)
    return found
