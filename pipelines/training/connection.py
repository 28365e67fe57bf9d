"""Connects a training worker to the others within a minute, or says in one line what was tried. Only the workers
import torch for it.

The backends listen on the interface by which Ray's nodes know each other, because it reaches the other nodes. Left
alone, gloo takes the address of the machine's host name. On many machines this is a loopback address (Debian writes
127.0.1.1 into /etc/hosts). NCCL begins with sockets, even if the data then goes by NVLink, InfiniBand or EFA. Left
alone, it takes the first interface that is neither loopback nor Docker's, which may belong to a virtual machine or a
VPN. If it has nothing but sockets, it would use several interfaces: NCCL_SOCKET_IFNAME can name them.
"""

import datetime
import os
import threading
from queue import Empty, SimpleQueue
from typing import Any

import psutil
import ray

INTERFACE_VARIABLES = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}
"""Environment variable that names the interface, by backend."""
_SECONDS_TO_CONNECT = 60.0
_TIMEOUT = datetime.timedelta(minutes=30)
"""Timeout of a collective, the same as Ray's."""
_LONGEST_REASON = 300


def connect(
    backend: str, rank: int, size: int, url: str, device: Any = "cpu", seconds: float = _SECONDS_TO_CONNECT
) -> None:
    """Joins the process group whose rank 0 waits at `url`, and adds up one number with the others, on `device`.

    Raises ConnectionError, in one line, if this fails or takes longer than `seconds`. The attempt then goes on in
    another thread, so the process must end.
    """
    import torch
    import torch.distributed as dist

    outcome: SimpleQueue[Exception | None] = SimpleQueue()

    # Gloo holds Python's lock while it connects, so it must end by itself. NCCL would end the process with it.
    timeout = datetime.timedelta(seconds=seconds) if backend == "gloo" else _TIMEOUT

    def attempt() -> None:
        try:
            dist.init_process_group(backend, init_method=url, rank=rank, world_size=size, timeout=timeout)
            dist.set_timeout(_TIMEOUT)
            if size > 1:  # NCCL connects at the first collective
                number = torch.ones(1, device=device)
                dist.all_reduce(number)
                number.item()  # waits for the device
        except Exception as error:
            outcome.put(error)
        else:
            outcome.put(None)

    # In a thread, because NCCL waits for as long as a collective may take.
    threading.Thread(target=attempt, name="connecting", daemon=True).start()
    try:
        error = outcome.get(timeout=seconds)
    except Empty:
        waited = f"waited {seconds:g} s for the others"
        raise ConnectionError(_line(backend, rank, size, url, waited)) from None
    if error is not None:
        raise ConnectionError(_line(backend, rank, size, url, f"failed: {_reason(error)}")) from error


def choose_interfaces() -> None:
    """Sets the backends' variables to the interface with the node's address, if there is one. Keeps values already
    set."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # without =, eth1 would also mean eth10


def interface_of(address: str) -> str | None:
    """Returns the network interface with this address, or None."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return None


def _line(backend: str, rank: int, size: int, url: str, what: str) -> str:
    variable = INTERFACE_VARIABLES[backend]
    interface = os.environ.get(variable, "").lstrip("=") or f"chosen by {backend}"
    return (
        f"the {size} workers cannot connect by {backend}: rank {rank}, on {ray.util.get_node_ip_address()} with "
        f"interface {interface}, {what}; rank 0 is to be reached at {url}, and each worker at ports that the system "
        f"chooses: open all TCP ports between the nodes, or set {variable} to the interface that reaches the other "
        "nodes; see docs/clusters.md, GPU machines"
    )


def _reason(error: Exception) -> str:
    """Returns the error in one line. NCCL's own words come last in it."""
    text = " ".join(str(error).split())
    return text.rpartition("Last error: ")[2][:_LONGEST_REASON]
