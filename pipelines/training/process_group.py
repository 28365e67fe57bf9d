"""The process group of the training workers. Only the workers import torch for it.

Ray's TorchConfig does the same, but imports torch into the driver and the controller, too, which do not need it. This
costs 300 MB and seconds per run, many times over in a sweep.

connection.py says how the workers find one another.
"""

import dataclasses
import logging
import socket
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.train.backend import Backend, BackendConfig

from pipelines.cluster.causes import root_cause
from pipelines.training.connection import choose_interfaces, connect
from pipelines.training.departure import heed_sigterm, is_training, leave_group

_SECONDS_TO_LEAVE = 30.0
_SECONDS_TO_SAVE = 600.0
"""Longest time for a step and a checkpoint before Ray starts a group of another size."""
_SECONDS_TO_ANSWER = 10.0
_SECONDS_TO_NOTICE = 5.0
"""Seconds after which Ray knows that a process has died."""
_MOST_LOST_STARTS = 3
"""Largest number of restarts in a row whose workers cannot connect."""

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
    """Joins the workers each time that Ray starts them.

    Workers that cannot connect at the first start have no network for it: this is an error that the user must fix. If
    they could connect before, or if one of them died, they are started again.
    """

    share_cuda_visible_devices = True

    def __init__(self) -> None:
        self._has_connected, self._num_lost = False, 0

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        # All of them are ready before the first begins to wait: on a busy machine, importing torch takes a minute.
        worker_group.execute(_prepare, backend_config.backend)
        url, size = worker_group.execute_single(0, meeting_place), len(worker_group)
        joining = [
            worker_group.execute_single_async(rank, _join, backend_config.backend, rank, size, url)
            for rank in range(size)
        ]
        try:
            ray.get(joining)
        except RayTaskError as error:
            line = root_cause(error).line
            self._num_lost += 1
            if _one_died(joining) or (self._has_connected and self._num_lost <= _MOST_LOST_STARTS):
                raise RayActorError(error_msg=line) from error  # for which Ray starts the workers again
            raise ValueError(line) from error
        self._has_connected, self._num_lost = True, 0

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            training = ray.get(worker_group.execute_async(is_training), timeout=_SECONDS_TO_ANSWER)
            if all(training):  # nothing has failed: Ray is about to start a group of another size
                ray.get(worker_group.execute_async(leave_group, _SECONDS_TO_SAVE))
            ray.get(worker_group.execute_async(_leave), timeout=_SECONDS_TO_LEAVE)
        except GetTimeoutError:
            logger.warning("the workers did not leave their process group within %g s", _SECONDS_TO_LEAVE)


def meeting_place() -> str:
    """Returns the URL at which this worker, rank 0, waits for the others."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return f"tcp://[{address}]:{port}" if family == socket.AF_INET6 else f"tcp://{address}:{port}"


def _prepare(backend: str) -> None:
    """Imports torch, prepares for SIGTERM, checks the GPU, and chooses the interfaces."""
    import torch.distributed  # noqa: F401

    heed_sigterm()

    if backend == "nccl":
        from pipelines.training.gpu import check_gpu

        check_gpu()
    choose_interfaces()


def _join(backend: str, rank: int, size: int, url: str) -> None:
    from ray.train.torch import get_device

    connect(backend, rank, size, url, get_device() if backend == "nccl" else "cpu")


def _one_died(joining: Sequence[ray.ObjectRef]) -> bool:
    """Whether one of the workers died: the others only see that their connection is lost."""
    for one in ray.wait(list(joining), num_returns=len(joining), timeout=_SECONDS_TO_NOTICE)[0]:
        try:
            ray.get(one)
        except RayActorError:
            return True
        except RayTaskError:
            continue
    return False


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _chosen_device() -> Any:
    """Returns a context in which the worker's own GPU is torch's default."""
    from ray.train.torch import TorchConfig

    return TorchConfig().train_func_context()
