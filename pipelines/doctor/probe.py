"""A process on a machine of the cluster, which answers the doctor's questions."""

import contextlib
import socket
import threading
import time
from collections.abc import Sequence

from pipelines.doctor import facts, services

_SECONDS_TO_CONNECT = 5.0


class Probe:
    """Runs as an actor, one on each machine. Several questions at a time."""

    def facts(self, ray_folder: str, num_gpus: float) -> facts.Facts:
        """Return what the machine knows about itself."""
        return facts.collect(ray_folder, num_gpus)

    def clock(self) -> float:
        """Return the machine's time, in seconds since 1970."""
        return time.time()

    def listen(self) -> int:
        """Accept connections at a port that the system chooses, for as long as the process lives. Returns the port."""
        server = socket.create_server(("", 0), backlog=1024)
        threading.Thread(target=_accept, args=(server,), name="listening", daemon=True).start()
        return server.getsockname()[1]

    def unreached(self, places: Sequence[tuple[str, str, int]]) -> list[str]:
        """Connect to each of (node, address, port). Returns the nodes that do not answer."""
        missing = []
        for node, address, port in places:
            try:
                socket.create_connection((address, port), timeout=_SECONDS_TO_CONNECT).close()
            except OSError:
                missing.append(node)
        return missing

    def store(self, uri: str, num_bytes: int) -> services.StoreSpeed:
        """Measure the store from here. ValueError or OSError if it cannot be used."""
        return services.measure_store(uri, num_bytes)


class RateWorker:
    """One of the processes that measure how fast the machines add up numbers, as they do with gradients."""

    def prepare(self) -> str:
        """Choose the interface, and return the URL at which the others find this process."""
        from pipelines.training.connection import choose_interfaces
        from pipelines.training.process_group import meeting_place

        choose_interfaces()
        return meeting_place()

    def measure(self, backend: str, rank: int, size: int, url: str, num_bytes: int) -> float:
        """Return the bytes per second and machine of an all-reduce, as on a ring: 2 (n - 1) / n of the size."""
        import torch
        import torch.distributed as dist

        from pipelines.training.connection import connect

        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        connect(backend, rank, size, url, device)
        numbers = torch.ones(num_bytes // 4, device=device)
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            dist.all_reduce(numbers)
            numbers[0].item()  # waits for the device
            seconds.append(time.perf_counter() - start)
        dist.destroy_process_group()
        return 2 * (size - 1) / size * num_bytes / min(seconds[1:])


def _accept(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            server.accept()[0].close()
