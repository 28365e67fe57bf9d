"""A CUDA device that does not exist: tensors that say `cuda:0`, with values that the CPU computes.

FakeTensorMode has no values, so code whose shapes depend on data (`unique`, `nonzero`) does not run under it. Here it
runs, and every operation is held to CUDA's rules. A `Log` counts what a GPU refuses or waits for, by place in the code:

    mix               tensors of two devices in one operation; raises, as on a GPU
    generator         a generator of another device than the tensor that it fills; raises, as on a GPU
    default generator random numbers from the global state of the device
    sync              the host waits for the device: `item`, `tolist`, `unique`, a copy to the host, ...
    copy              the host waits for a copy to the device, because the memory is not pinned or the copy is blocking
    collective        a call of the process group

It cannot tell numbers and speed of CUDA kernels, limits of kernels on strides, races between streams, memory, NCCL.

The process loads the compiled `pretend_cuda.c` before it imports torch, which then counts one device.
"""

import contextlib
import dataclasses
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from groupvit import transformer

CUDA = torch.device("cuda", 0)
REFUSED = ("mix", "generator", "default generator")

# The host reads the size or the value of the result.
_SYNCHRONISING = {
    "_local_scalar_dense", "bincount", "equal", "histc", "is_nonzero", "item", "masked_select", "nonzero", "_unique",
    "_unique2", "unique_consecutive", "unique_dim", "unique_dim_consecutive",
}  # fmt: skip
_COPIES = {"copy_", "_to_copy", "to", "_copy_from", "_copy_from_and_resize"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_NO_SCALARS = {"addmm", "bmm", "cat", "embedding", "mm", "scatter_", "stack"}
_RANDOM = {"bernoulli_", "normal_", "rand", "randint", "randn", "randperm", "uniform_"}
_PLAIN_RESULTS = {"_local_scalar_dense", "equal", "is_nonzero", "is_pinned"}


class Event(NamedTuple):
    """What a GPU refuses or waits for."""

    kind: str
    what: str
    place: str
    """File and function of the project's innermost frame, or "backward"."""


@dataclasses.dataclass
class Log:
    """Counts of events."""

    events: Counter[Event] = dataclasses.field(default_factory=Counter)
    pinned: list[torch.UntypedStorage] = dataclasses.field(default_factory=list)
    """Pinned memory, which is kept alive so that no other tensor gets its address."""

    def note(self, kind: str, what: str) -> None:
        self.events[Event(kind, what, _place())] += 1

    def of(self, *kinds: str) -> dict[Event, int]:
        return {event: count for event, count in self.events.items() if event.kind in kinds}

    def is_pinned(self, x: torch.Tensor) -> bool:
        return any(x.untyped_storage().data_ptr() == storage.data_ptr() for storage in self.pinned)


_log = Log()


def _place() -> str:
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/groupvit/" in name or "/pipelines/" in name:
            inside = name.rpartition("/groupvit/" if "/groupvit/" in name else "/pipelines/")
            return f"{inside[1][1:]}{inside[2]} {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "backward"


class Pretend(torch.Tensor):
    """Says that it is on cuda:0; `held` has its values, on the CPU."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Pretend":
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=CUDA,
            requires_grad=False,
        )
        made.held = held.detach()
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        _log.note("sync", "tolist")
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        _log.note("mix", "numpy")
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __reduce_ex__(self, protocol: Any) -> Any:
        _log.note("sync", "pickled")
        return self.held.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied: torch.Tensor = Pretend(self.held.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.split("::")[1]
    flat = list(_leaves((*args, *kwargs.values())))
    pretend = [x for x in flat if isinstance(x, Pretend)]
    plain = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Pretend)]
    device = kwargs.get("device")
    on_cuda = bool(pretend) if device is None else torch.device(device).type == "cuda"
    if func.namespace == "c10d":
        return _collective(func, name, args, kwargs, plain)
    if name == "record_stream":
        assert pretend, "record_stream: could not run with arguments from the 'CPU' backend"
        return None
    _check_devices(name, pretend, plain, args)
    _check_generator(name, flat, on_cuda)
    if pretend or on_cuda:
        _note_waits(name, pretend, plain, args, kwargs, on_cuda)
    real_args, real_kwargs = _map(_held, (args, kwargs))
    if on_cuda and device is not None:
        real_kwargs["device"] = torch.device("cpu")
    pins = bool(real_kwargs.pop("pin_memory", False))
    if name == "_pin_memory":
        result, pins = real_args[0].clone(), True
    else:
        result = func(*real_args, **real_kwargs)
    if pins:
        _log.pinned.append(result.untyped_storage())
    if name in _PLAIN_RESULTS:
        return result
    written = _written(func, args, kwargs)
    if written is not None:
        return written
    if not on_cuda:
        return result
    if name == "_to_copy" and not pretend:
        result = result.clone()  # not the memory of the CPU's tensor
    return _map(_pretended, result)


# Arguments and results of operations are numbers, tensors, and sequences of them, for which torch's pytree takes longer
# than most operations.
def _leaves(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _map(change, part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(change, part) for part in value)
    return change(value)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Pretend) else value


def _pretended(value: Any) -> Any:
    return Pretend(value) if isinstance(value, torch.Tensor) and not isinstance(value, Pretend) else value


def _written(func: Any, args: Any, kwargs: Any) -> Any:
    """Returns the argument that an in-place or out= operation wrote and returns; None for other operations."""
    schema = func._schema
    if not schema.returns or not all(r.alias_info is not None and r.alias_info.is_write for r in schema.returns):
        return None
    given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    found = [given[a.name] for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return found[0] if len(schema.returns) == 1 else tuple(found)


def _check_devices(name: str, pretend: list[Pretend], plain: list[torch.Tensor], args: Any) -> None:
    if not pretend or not plain or name in _COPIES:
        return
    if name in _INDEXING and isinstance(args[0], Pretend):
        _log.note("copy", "indexes of the CPU")
    elif name in _NO_SCALARS or any(x.dim() for x in plain):  # other operations take a number from the CPU
        _log.note("mix", name)
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found cuda:0 and cpu")


def _check_generator(name: str, flat: list[Any], on_cuda: bool) -> None:
    generators = [x for x in flat if isinstance(x, torch._C.Generator)]
    for generator in generators:
        if (_device_of_seed.get(generator.initial_seed(), "cpu") == "cuda") != on_cuda:
            _log.note("generator", name)
            raise RuntimeError(f"{name}: Expected a '{'cuda' if on_cuda else 'cpu'}' device type for generator")
    if not generators and on_cuda and name in _RANDOM:
        _log.note("default generator", name)


def _note_waits(name: str, pretend: list[Any], plain: list[Any], args: Any, kwargs: Any, on_cuda: bool) -> None:
    if name in _SYNCHRONISING:
        _log.note("sync", name)
    elif name == "repeat_interleave" and kwargs.get("output_size") is None:
        _log.note("sync", "repeat_interleave without output_size")
    elif name == "index" and any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1]):
        _log.note("sync", "index by a mask")
    elif (name == "_to_copy" and pretend and not on_cuda) or (
        name == "copy_" and plain and isinstance(args[1], Pretend)
    ):
        _log.note("sync", "to the host")
    elif name in ("_to_copy", "copy_") and plain:
        waits = not kwargs.get("non_blocking", len(args) > 2 and args[2]) or not _log.is_pinned(plain[0])
        if waits:
            _log.note("copy", f"{plain[0].dim()}-D {str(plain[0].dtype).removeprefix('torch.')}")


def _collective(func: Any, name: str, args: Any, kwargs: Any, plain: list[torch.Tensor]) -> Any:
    """A collective of torch's fake process group: every worker says what this one says."""
    if plain:
        _log.note("mix", f"collective {name}")
        raise RuntimeError(f"{name}: No backend type associated with device type cpu (nccl)")
    _log.note("collective", name)
    real_args, real_kwargs = _map(_held, (args, kwargs))
    if name == "_allgather_base_":
        real_args[0].copy_(real_args[1].repeat(len(real_args[0]) // len(real_args[1]), *[1] * (real_args[1].dim() - 1)))
    elif name == "_reduce_scatter_base_":
        real_args[0].copy_(real_args[1][: len(real_args[0])])
    result = func(*real_args, **real_kwargs)
    return (args[0], *result[1:]) if isinstance(result, tuple) else result


_device_of_seed: dict[int, str] = {}
"""The dispatcher hands on generators without their Python class: their seed tells which it was."""


class PretendGenerator(torch.Generator):
    _pretended: torch.device

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls, "cpu")  # pyright: ignore[reportCallIssue]
        made._pretended = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self._pretended

    def manual_seed(self, seed: int) -> Any:
        _device_of_seed[seed] = self._pretended.type
        super().manual_seed(seed)
        return self


def _enter(mode: Any) -> None:
    """Stands for inference_mode's: a subclass of Tensor cannot hold tensors of inference mode."""
    mode.before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)


def _leave(mode: Any, *error: Any) -> None:
    torch.set_grad_enabled(mode.before)


_run_thread = threading.Thread.run


def _run_pretending(thread: threading.Thread) -> None:
    """Stands for a thread's `run`: each thread has its own modes."""
    with _Mode():
        _run_thread(thread)


@contextlib.contextmanager
def pretending() -> Iterator[Log]:
    """Within, the device `cuda` exists. Yields what happens on it."""
    global _log
    _log = Log()
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    lift = torch._C._only_lift_cpu_tensors()
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "is_bf16_supported", lambda *args, **options: True),
            (torch, "Generator", PretendGenerator),
            (torch.inference_mode, "__enter__", _enter),
            (torch.inference_mode, "__exit__", _leave),
            (threading.Thread, "run", _run_pretending),
            (transformer, "KERNELS", [SDPBackend.MATH]),
            (transformer, "KERNELS_FOR_VARIED_SHAPES", [SDPBackend.MATH]),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(sdpa_kernel([SDPBackend.MATH]))  # on the CPU, too, with which results are compared
        stack.callback(torch._C._set_only_lift_cpu_tensors, lift)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(_Mode())
        yield _log


def values(x: torch.Tensor) -> torch.Tensor:
    """Returns the values of a tensor of either device, on the CPU."""
    return x.held if isinstance(x, Pretend) else x
