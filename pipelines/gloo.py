"""Gloo between machines: it listens on the interface by which Ray's nodes know each other.

Left alone, gloo takes the address that the machine's own name has. On many that is a loopback address (Debian writes
127.0.1.1 into /etc/hosts), on which no other machine reaches it.
"""

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

_TorchBackend: Any = TorchConfig().backend_cls


class NodeAddressTorchConfig(TorchConfig):
    """Ray's own, whose workers first choose the interface."""

    @property
    def backend_cls(self) -> Any:
        return _NodeAddressBackend


class _NodeAddressBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


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
