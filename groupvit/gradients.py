"""Sums gradients over slices and workers in buckets, while the backward pass still computes other gradients.

A bucket is sent as soon as the gradients of all its parameters are complete, but never before the one ahead of it. So
every worker sends the same buckets in the same order, as process groups require.

With exact sums (`groupvit.exact_sums`), the sum has the same bits however the slices are divided among the workers.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from groupvit.config import ReducePrecision
from groupvit.exact_sums import add_terms, from_fixed, to_fixed

BUCKET_BYTES = 25 * 2**20
"""Size of a bucket, as in PyTorch's DistributedDataParallel: large enough for the network's full speed."""
LAST_BUCKET_BYTES = 2**20
"""Size of the last bucket. Nothing is left to compute while it travels, so it is small."""


class _Bucket:
    """Parameters whose gradients travel together."""

    def __init__(self, parameters: list[nn.Parameter], *, in_bfloat16: bool) -> None:
        self.parameters = parameters
        self.in_bfloat16 = in_bfloat16
        self.num_incomplete = len(parameters)
        """Number of parameters whose gradient is still to come."""
        ends = list(itertools.accumulate(parameter.numel() for parameter in parameters))
        self.places = dict(zip(parameters, zip([0, *ends], ends, strict=False), strict=True))
        """First and last + 1 place of each parameter among the bucket's values."""
        self.sums: Tensor | None = None
        """int64, in fixed point: what has been added."""
        self.added: set[Tensor] = set()
        """Parameters that have had a gradient."""


@dataclasses.dataclass(frozen=True)
class _Message:
    """A bucket on its way."""

    work: dist.Work | None
    """None: there is only one worker."""
    flat: Tensor
    """The gradients of `parameters`, then what else travels with them."""
    parameters: list[nn.Parameter]
    sums: Tensor | None
    """Memory to use again."""


class GradientReducer:
    """Sums the gradients of one step over its slices and over the workers of a group.

    After each backward pass, call `add`. Before the one that completes the gradients of some parameters, call `arm`
    instead. Call `finish` after the last. The terms must be small enough for `groupvit.exact_sums`.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        group: dist.ProcessGroup | None,
        num_slices: int,
        precision: ReducePrecision = "exact",
    ) -> None:
        """Make buckets.

        Args:
            parameters: In the order in which the forward pass uses them: their gradients come in the reverse order.
            group: Workers of the global batch; None: this one alone. All must give the same parameters, and the same
                ones must get gradients.
            num_slices: Number of slices of the global batch.
            precision: `exact`: the same bits for any number of workers. `float32`: half the bytes. `bfloat16`: half of
                these, except for the last bucket.
        """
        self._group, self._num_slices, self._is_exact = group, num_slices, precision == "exact"
        parameters = list(parameters)
        self._device = parameters[0].device
        self._unsent = deque(_make_buckets(parameters, precision))
        self._bucket_of: dict[Tensor, _Bucket] = {
            parameter: bucket for bucket in self._unsent for parameter in bucket.parameters
        }
        self._armed: list[RemovableHandle] = []
        self._sent: list[_Message] = []
        self._num_unfit = torch.zeros((), dtype=torch.int64, device=self._device)

    def add(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add the gradients that these parameters have after the backward pass of a slice."""
        if not self._is_exact:
            return  # autograd has added them
        for bucket, of_bucket in itertools.groupby(
            (p for p in parameters if p.grad is not None), key=self._bucket_of.__getitem__
        ):
            self._add_to(bucket, list(of_bucket))

    def report(self, fits: Tensor) -> None:
        """Take notice whether the terms of another exact sum of this step were fit for it: bool 0-D."""
        self._num_unfit += ~fits

    def complete(self, parameters: Iterable[nn.Parameter]) -> None:
        """Send the gradients of these parameters, all of whose terms have been added."""
        for parameter in parameters:
            self._complete(parameter)

    def arm(self, parameters: Iterable[nn.Parameter]) -> None:
        """Send the gradients of these parameters when the next backward pass completes them."""
        for parameter in parameters:
            if parameter in self._bucket_of:
                self._armed.append(parameter.register_post_accumulate_grad_hook(self._complete))

    def finish(self, metrics: Mapping[str, Sequence[Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        """Send the rest, wait for all, and store the sums in `.grad`.

        A parameter without a gradient stays without one. On a GPU the stream waits, and the host goes on.

        Args:
            metrics: 0-D values of each own slice, which travel with the last bucket.

        Returns:
            The means of the metrics over all slices; and bool 0-D, whether all sums are right. If not, a term was not
            finite or too large, and the gradients are worth nothing.
        """
        for hook in self._armed:
            hook.remove()
        while len(self._unsent) > 1:
            self._send([])
        values = torch.stack([torch.stack(list(same)) for same in metrics.values()]) / self._num_slices  # [M,n]
        if self._is_exact:
            terms, fit = to_fixed(values, self._num_slices)
            self.report(fit)
            self._send([terms.sum(dim=1), self._num_unfit[None]])
        else:
            self._send([values.sum(dim=1), self._num_unfit[None].to(values.dtype)])
        flat = torch.empty(0)
        for message in self._sent:
            if message.work is not None:
                message.work.wait()
            flat = message.flat
            places = itertools.accumulate((p.numel() for p in message.parameters), initial=0)
            for parameter, place in zip(message.parameters, places, strict=False):
                assert parameter.grad is None, "a gradient was sent before it was complete"
                part = flat[place : place + parameter.numel()].view_as(parameter)
                parameter.grad = from_fixed(part, parameter.dtype) if self._is_exact else part.to(parameter.dtype)
            if type(message.sums) is Tensor and message.sums.device.type == "cpu":
                _free.append(message.sums)
        *sums, num_unfit = flat[-len(metrics) - 1 :].unbind()
        if self._is_exact:
            sums = [from_fixed(x, values.dtype) for x in sums]
        return dict(zip(metrics, sums, strict=True)), num_unfit == 0

    def _add_to(self, bucket: _Bucket, parameters: list[nn.Parameter]) -> None:
        """Add the gradients of some of a bucket's parameters to its sums. They leave `.grad`, to free their memory."""
        if bucket.sums is None:
            bucket.sums = _reused(bucket.places[bucket.parameters[-1]][1], self._device)
        for some in self._together(bucket, parameters):
            gradients = [parameter.grad.reshape(-1) for parameter in some if parameter.grad is not None]
            sums = bucket.sums[bucket.places[some[0]][0] : bucket.places[some[-1]][1]]
            terms = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
            self.report(add_terms(sums, terms, self._num_slices, is_first=some[0] not in bucket.added))
            for parameter in some:
                parameter.grad = None
        bucket.added.update(parameters)

    def _together(self, bucket: _Bucket, parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
        """Which parameters' gradients to add at once: on a GPU all neighbours, so that it starts few kernels."""
        together: list[list[nn.Parameter]] = []
        for parameter in parameters:
            joins = (
                self._device.type != "cpu"
                and bool(together)
                and bucket.places[together[-1][-1]][1] == bucket.places[parameter][0]
                and (together[-1][0] in bucket.added) == (parameter in bucket.added)
            )
            if joins:
                together[-1].append(parameter)
            else:
                together.append([parameter])
        return together

    def _complete(self, parameter: Tensor) -> None:
        self._bucket_of[parameter].num_incomplete -= 1
        while len(self._unsent) > 1 and self._unsent[0].num_incomplete == 0:
            self._send([])

    def _send(self, others: list[Tensor]) -> None:
        """Send the next bucket, and 1-D `others` behind it. Its gradients leave `.grad`, to free their memory."""
        bucket = self._unsent.popleft()
        self.add(bucket.parameters)
        if self._is_exact:
            parameters = [parameter for parameter in bucket.parameters if parameter in bucket.added]
            assert bucket.sums is not None or not parameters
            tensors = [bucket.sums[slice(*bucket.places[p])] for p in parameters] if bucket.sums is not None else []
            if len(parameters) == len(bucket.parameters) and bucket.sums is not None:
                tensors = [bucket.sums]
        else:
            parameters = [parameter for parameter in bucket.parameters if parameter.grad is not None]
            tensors = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
            for parameter in parameters:
                parameter.grad = None
        if not tensors and not others:
            return
        flat = torch.cat([*tensors, *others]) if len(tensors) + len(others) > 1 else [*tensors, *others][0]
        if bucket.in_bfloat16:
            flat = flat.bfloat16()
        work = None if self._group is None else dist.all_reduce(flat, group=self._group, async_op=True)
        self._sent.append(_Message(work, flat, parameters, bucket.sums))


_free: list[Tensor] = []
"""Sums of the last step. Getting new pages from the system takes longer than adding to old ones."""


def _reused(size: int, device: torch.device) -> Tensor:
    """Memory for sums, int64 [size]. A GPU's allocator reuses memory itself, and a fake tensor has none."""
    if device.type == "cpu" and type(torch.empty(0)) is Tensor:
        for place, tensor in enumerate(_free):
            if len(tensor) == size:
                return _free.pop(place)
    return torch.empty(size, dtype=torch.int64, device=device)


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
        yield _Bucket(buckets[index], in_bfloat16=precision == "bfloat16" and index > 0)
