"""Averages gradients over workers in buckets, while the backward pass still computes other gradients.

A bucket is sent as soon as the gradients of all its parameters are complete, but never before the one ahead of it. So
every worker sends the same buckets in the same order, as process groups require.
"""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from groupvit.config import ReducePrecision

BUCKET_BYTES = 25 * 2**20
"""Size of a bucket, as in PyTorch's DistributedDataParallel: large enough for the network's full speed."""
LAST_BUCKET_BYTES = 2**20
"""Size of the last bucket. Nothing is left to compute while it travels, so it is small."""


@dataclasses.dataclass
class _Bucket:
    """Parameters whose gradients travel together."""

    parameters: list[nn.Parameter]
    num_incomplete: int
    """Number of parameters whose gradient is still to come."""
    in_bfloat16: bool


@dataclasses.dataclass(frozen=True)
class _Message:
    """A bucket on its way."""

    work: dist.Work
    flat: Tensor
    """The gradients of `parameters`, then `metrics`."""
    parameters: list[nn.Parameter]
    metrics: list[Tensor]


class GradientReducer:
    """Averages the gradients of one step over the workers of a group. With `group=None` there is one worker, and
    nothing changes.

    Call `arm` before the backward pass that completes the gradients of some parameters, and `finish` after the last.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        group: dist.ProcessGroup | None,
        precision: ReducePrecision = "float32",
    ) -> None:
        """Make buckets.

        Args:
            parameters: In the order in which the forward pass uses them: their gradients come in the reverse order.
            group: Workers of the global batch. All must give the same parameters, and the same ones must get gradients.
            precision: `bfloat16` sends half the bytes, except for the last bucket.
        """
        self._group = group
        self._unsent = deque(() if group is None else _make_buckets(parameters, precision))
        self._bucket_of: dict[Tensor, _Bucket] = {
            parameter: bucket for bucket in self._unsent for parameter in bucket.parameters
        }
        self._hooks: list[RemovableHandle] = []
        self._sent: list[_Message] = []

    def arm(self, parameters: Iterable[nn.Parameter]) -> None:
        """Send the gradients of these parameters when the next backward pass completes them."""
        for parameter in parameters:
            if parameter in self._bucket_of:
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._complete))

    def finish(self, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Send the rest, wait for all, and store the averages in `.grad`. Returns the averages of the metrics, which
        travel with the last bucket.

        A parameter without a gradient stays without one. On a GPU the stream waits, and the host goes on.
        """
        for hook in self._hooks:
            hook.remove()
        if self._group is None:
            return dict(metrics)
        while self._unsent:
            self._send(list(metrics.values()) if len(self._unsent) == 1 else [])
        averages: list[Tensor] = []
        for message in self._sent:
            message.work.wait()
            tensors = [*message.parameters, *message.metrics]
            flat = message.flat.to(tensors[0].dtype).div_(dist.get_world_size(self._group))
            parts = flat.split([x.numel() for x in tensors])
            averages = [part.view_as(x) for part, x in zip(parts, tensors, strict=True)]
            for parameter, average in zip(message.parameters, averages, strict=False):
                assert parameter.grad is None, "a gradient was sent before it was complete"
                parameter.grad = average
        return dict(zip(metrics, averages[-len(metrics) :], strict=True))

    def _complete(self, parameter: Tensor) -> None:
        self._bucket_of[parameter].num_incomplete -= 1
        while len(self._unsent) > 1 and self._unsent[0].num_incomplete == 0:
            self._send([])

    def _send(self, metrics: list[Tensor]) -> None:
        """Send the next bucket. Its gradients leave `.grad`, to free their memory."""
        bucket = self._unsent.popleft()
        gradients = [(parameter, parameter.grad) for parameter in bucket.parameters if parameter.grad is not None]
        tensors = [gradient for _, gradient in gradients] + metrics
        if not tensors:
            return
        flat = torch.cat([x.flatten() for x in tensors])
        if bucket.in_bfloat16:
            flat = flat.bfloat16()
        for parameter, _ in gradients:
            parameter.grad = None
        work = dist.all_reduce(flat, group=self._group, async_op=True)
        assert work is not None
        self._sent.append(_Message(work, flat, [parameter for parameter, _ in gradients], metrics))


def _make_buckets(parameters: Iterable[nn.Parameter], precision: ReducePrecision) -> Iterator[_Bucket]:
    """Buckets in the order of sending. Scalars are in the last one, since a loss may leave one without a gradient."""
    buckets: list[list[nn.Parameter]] = [[]]
    num_bytes, limit = 0, LAST_BUCKET_BYTES
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in sorted(trained, key=lambda parameter: parameter.dim() > 0):
        if num_bytes >= limit:
            buckets.append([])
            num_bytes, limit = 0, BUCKET_BYTES
        buckets[-1].append(parameter)
        num_bytes += parameter.nbytes
    for index in reversed(range(len(buckets))):
        yield _Bucket(buckets[index], len(buckets[index]), precision == "bfloat16" and index > 0)
