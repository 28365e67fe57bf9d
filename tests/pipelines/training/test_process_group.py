"""How workers find one another, and what is said if they cannot. That machines reach one another is seen in
tests/end_to_end/test_cluster.py.
"""

import dataclasses
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from pipelines.training.connection import choose_interfaces, connect, interface_of
from pipelines.training.pretrain import pretrain
from pipelines.training.process_group import ProcessGroup
from tests.support.small_run import make_config, write_noise

NUM_CPUS = 2


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.254") is None


def test_the_nodes_interface_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    found = interface_of(ray.util.get_node_ip_address())
    for variable, chosen in {"GLOO_SOCKET_IFNAME": found, "NCCL_SOCKET_IFNAME": found and f"={found}"}.items():
        monkeypatch.setenv(variable, "mine0")
        choose_interfaces()
        assert os.environ[variable] == "mine0"
        monkeypatch.delenv(variable)
        choose_interfaces()
        assert os.environ.get(variable) == chosen


CONNECT = """
import os, sys
from pipelines.training.connection import choose_interfaces, connect
rank, size, url, seconds = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
choose_interfaces()
try:
    connect("gloo", rank, size, url, seconds=seconds)
except ConnectionError as error:
    print(error, flush=True)
    os._exit(3)  # as Ray ends a worker: the attempt goes on in its thread
import torch, torch.distributed as dist
number = torch.tensor([rank + 1.0])
dist.all_reduce(number)
print("connected", number.item(), flush=True)
"""


def worker(rank: int, size: int, url: str, seconds: float, **variables: str) -> "subprocess.Popen[str]":
    """A process that connects to the others."""
    return subprocess.Popen(
        [sys.executable, "-c", CONNECT, str(rank), str(size), url, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


def test_workers_that_reach_one_another_connect() -> None:
    url = free_address()
    workers = [worker(rank, 2, url, 120) for rank in range(2)]
    said = [process.communicate()[0] for process in workers]
    assert [process.returncode for process in workers] == [0, 0]
    assert all(text.startswith("connected 3.0") for text in said)


@pytest.mark.parametrize(
    ("rank", "url"),
    [
        pytest.param(0, None, id="the other never comes"),
        pytest.param(1, None, id="nobody listens"),
        pytest.param(1, "tcp://192.0.2.1:29500", id="the address cannot be reached"),
    ],
)
def test_a_worker_alone_gives_up_and_says_what_it_tried(rank: int, url: str | None) -> None:
    url = url or free_address()
    alone = worker(rank, 2, url, 1)
    said = alone.communicate(timeout=240)[0]
    assert alone.returncode == 3
    assert said.count("\n") == 1
    interface = os.environ.get("GLOO_SOCKET_IFNAME") or interface_of(ray.util.get_node_ip_address())
    for part in (url, f"rank {rank}", "GLOO_SOCKET_IFNAME", "docs/clusters.md", f"interface {interface}", "2 workers"):
        assert part in said


HALFWAY = """
import sys, time
import torch.distributed as dist
print("ready", flush=True)
host, _, port = sys.argv[1].removeprefix("tcp://").partition(":")
store = dist.TCPStore(host, int(port), 2, False)
time.sleep(600)
"""


def test_a_worker_that_stops_halfway_is_not_waited_for() -> None:
    """It has found rank 0, which then waits inside gloo, and for as long keeps other threads from running."""
    url = free_address()
    other = subprocess.Popen([sys.executable, "-c", HALFWAY, url], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        first = worker(0, 2, url, 3)
        said = first.communicate(timeout=240)[0]
    finally:
        other.kill()
        other.communicate()
    assert first.returncode == 3 and "cannot connect by gloo: rank 0" in said and said.count("\n") == 1, said


def test_an_interface_that_is_not_there_is_named() -> None:
    url = free_address()
    workers = [worker(rank, 2, url, 60, GLOO_SOCKET_IFNAME="nowhere0") for rank in range(2)]
    for process in workers:
        said = process.communicate(timeout=240)[0]
        assert process.returncode == 3
        assert "interface nowhere0" in said and said.count("\n") == 1


def test_what_nccl_says_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its message is as torch 2.14 words it; no NCCL runs here."""
    import torch.distributed as dist

    def refuse(*arguments: object, **options: object) -> None:
        raise dist.DistBackendError(
            "NCCL error in: /pytorch/NCCLUtils.cpp:94, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL "
            "version 2.28.9\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
            "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000"
        )

    monkeypatch.setattr(dist, "init_process_group", refuse)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "=eth7")
    with pytest.raises(ConnectionError, match=r"by nccl: rank 1, .* interface eth7, failed: Duplicate GPU") as refused:
        connect("nccl", 1, 2, "tcp://10.0.0.1:29500")
    assert "\n" not in str(refused.value) and "NCCL_SOCKET_IFNAME" in str(refused.value)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_whose_workers_cannot_connect_ends_at_once_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    ray.shutdown()  # whatever another test left
    config = make_config(write_noise(str(tmp_path / "data")), tmp_path / "runs", "apart", num_workers=2)
    config = dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, uri=None))
    with pytest.raises(ValueError, match=re.escape("the 2 workers cannot connect by gloo")) as refused:
        pretrain(config)
    assert "\n" not in str(refused.value) and "nowhere0" in str(refused.value)
    assert not (tmp_path / "runs" / "apart" / "checkpoints").exists()
    assert "Traceback" not in capfd.readouterr().err


@ray.remote(num_cpus=0)
class Member:
    """A worker of Ray Train, as far as a process group knows it."""

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


class Group:
    """Two of them. They live on after a start that failed, so that the next one fails, too."""

    def __init__(self) -> None:
        self.members = [Member.remote() for _ in range(2)]

    def __len__(self) -> int:
        return len(self.members)

    def execute(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        return ray.get([self.execute_single_async(rank, function, *args) for rank in range(len(self))])

    def execute_single(self, rank: int, function: Callable[..., Any], *args: Any) -> Any:
        return ray.get(self.execute_single_async(rank, function, *args))

    def execute_single_async(self, rank: int, function: Callable[..., Any], *args: Any) -> Any:
        return self.members[rank].run.remote(function, *args)


@pytest.mark.slow
def test_workers_that_could_connect_before_are_started_again(cluster: None) -> None:
    config = ProcessGroup("gloo")
    workers, group = config.backend_cls(), Group()
    workers.__init__()  # Ray makes one for each process, and another test may have used it
    workers.on_start(group, config)
    for _ in range(3):
        with pytest.raises(RayActorError, match=r"cannot connect by gloo: .* failed: trying to initialize"):
            workers.on_start(group, config)
    with pytest.raises(ValueError, match="cannot connect by gloo"):
        workers.on_start(group, config)

    workers.__init__()  # now as at the first start
    with pytest.raises(ValueError, match="cannot connect by gloo"):
        workers.on_start(group, config)
    ray.kill(group.members[1])  # pyright: ignore[reportArgumentType]
    with pytest.raises(RayActorError):
        workers.on_start(group, config)
