"""The process group of the training workers. Only the workers import torch for it.

Ray's TorchConfig does the same, but imports torch into the driver and the controller, too, which do not need it. This
costs 300 MB and seconds per run, many times over in a sweep.

Gloo listens on the interface by which Ray's nodes know each other. Its default is the address of the machine's own
host name. On many machines this is a loopback address (Debian writes 127.0.1.1 into /etc/hosts), which no other
machine can reach.
"""

import dataclasses
import datetime
import logging
import os
import socket
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

_SECONDS_TO_LEAVE = 30.0
_TIMEOUT = datetime.timedelta(minutes=30)
"""Timeout of a collective, the same as Ray's."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class ProcessGroup(BackendConfig):
    """Config of the process group. `backend` is gloo or nccl."""

    backend: str

    @property
    def backend_cls(self) -> Any:
        return _Workers

    @property
    def train_func_context(self) -> Any:
        return _chosen_device


class _Workers(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        url, size = worker_group.execute_single(0, _meeting_place), len(worker_group)
        joining = [
            worker_group.execute_single_async(rank, _join, backend_config.backend, rank, size, url)
            for rank in range(size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            ray.get(worker_group.execute_async(_leave), timeout=_SECONDS_TO_LEAVE)
        except GetTimeoutError:
            logger.warning("the workers did not leave their process group within %g s", _SECONDS_TO_LEAVE)


def _meeting_place() -> str:
    """Returns the URL at which this worker, rank 0, waits for the others."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return f"tcp://[{address}]:{port}" if family == socket.AF_INET6 else f"tcp://{address}:{port}"


def _join(backend: str, rank: int, size: int, url: str) -> None:
    import torch.distributed as dist

    if backend == "nccl":
        from pipelines.training.gpu import check_gpu

        check_gpu()
    choose_interface()
    dist.init_process_group(backend, init_method=url, rank=rank, world_size=size, timeout=_TIMEOUT)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _chosen_device() -> Any:
    """Returns a context in which the worker's own GPU is torch's default."""
    from ray.train.torch import TorchConfig

    return TorchConfig().train_func_context()


def choose_interface() -> None:
    """Sets GLOO_SOCKET_IFNAME to the interface with the node's address, if there is one. Keeps a value already set."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """Returns the network interface with this address, or None."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None
