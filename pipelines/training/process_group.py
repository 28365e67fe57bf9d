"""The process group of the training workers, made in the workers alone.

Ray's TorchConfig does the same, but imports torch into the driver and the controller, which have no use for it: 300 MB
and seconds of each run, many times over in a sweep.

Gloo listens on the interface by which Ray's nodes know each other. Left alone, it takes the address that the machine's
own name has. On many that is a loopback address (Debian writes 127.0.1.1 into /etc/hosts), on which no other machine
reaches it.
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
"""Of a collective: as long as Ray gives it."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class ProcessGroup(BackendConfig):
    """`backend`: gloo or nccl."""

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
    """URL at which this worker, of rank 0, is to wait for the others."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return f"tcp://[{address}]:{port}" if family == socket.AF_INET6 else f"tcp://{address}:{port}"


def _join(backend: str, rank: int, size: int, url: str) -> None:
    import torch.distributed as dist

    choose_interface()
    dist.init_process_group(backend, init_method=url, rank=rank, world_size=size, timeout=_TIMEOUT)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _chosen_device() -> Any:
    """Context in which a worker's own GPU is torch's default."""
    from ray.train.torch import TorchConfig

    return TorchConfig().train_func_context()


def choose_interface() -> None:
    """Set GLOO_SOCKET_IFNAME, unless the user has, to the interface with the node's address, if one has it."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The network interface with this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None
