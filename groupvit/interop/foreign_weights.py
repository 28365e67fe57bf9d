"""Reads the tensors of weight files from untrusted sources, and nothing else of them.

No code in such a file is run. `groupvit.interop.inert_pickle` skips everything else in a checkpoint: configs,
optimisers, metrics and paths, of any class. The tensors cannot be larger than the file.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from groupvit.file_kinds import START_BYTES, other_kind
from groupvit.interop.inert_pickle import StandIn, StoredTensor, UnsafeCallError
from groupvit.interop.torch_files import ZIP_MAGIC, OtherFileError, TorchFile, num_bytes, open_torch_file

MAX_NOTICE = 2000
"""Largest number of characters that are kept of a licence notice."""

_MAX_NAME = 300
_MAX_NESTED = 3
"""Largest number of nested dictionaries around the weights."""
_NAMED_PREFIX = "weights/"
_KEYS = ("model", "state_dict", "model_state_dict", "model_ema", "ema", "module", "net")
"""Entries of a checkpoint that can hold its weights. The first one present is used."""
_PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes that wrappers add to all names: DistributedDataParallel, torch.compile, Lightning."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForeignWeights:
    """Contents of a weight file."""

    tensors: dict[str, Tensor]
    license: str | None
    """Licence notice in the file; None if there is none."""


def read_weights(path: Path) -> ForeignWeights:
    """Read the tensors of a safetensors file, or of a checkpoint by `torch.save`. The suffix of the file is ignored.

    A checkpoint may hold its weights in an entry like `model` or `state_dict`. Prefixes of wrappers that all names
    share are removed. If some names begin with `weights/`, only these tensors are read, and this prefix is removed.

    Raises:
        ValueError: The file does not exist, is corrupted, of another kind, or has no weights. The message is one line
            that names the file.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a file of weights")
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    if start[5:9] == b"\0\0\0{":  # the length of the header, then the header
        found = _read_safetensors(path)
    elif start.startswith((ZIP_MAGIC, b"\x80")):
        found = _read_torch(path)
    else:
        raise ValueError(f"{path} {other_kind(start) or _unknown_kind(start)}")
    for name in found.tensors:
        if not name.isprintable() or len(name) > _MAX_NAME:
            raise ValueError(f"{path} has {name[:_MAX_NAME]!r} where the name of a tensor belongs: give a checkpoint")
    found = dataclasses.replace(found, tensors=_without_prefixes(found.tensors))
    if any(name.startswith(_NAMED_PREFIX) for name in found.tensors):
        prefixed = {name: tensor for name, tensor in found.tensors.items() if name.startswith(_NAMED_PREFIX)}
        tensors = {name.removeprefix(_NAMED_PREFIX): tensor for name, tensor in prefixed.items()}
        return dataclasses.replace(found, tensors=tensors)
    return found


def _read_safetensors(path: Path) -> ForeignWeights:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            return ForeignWeights(
                tensors={name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118 -- not a dict
                license=_notice(metadata),
            )
    except SafetensorError as error:
        raise ValueError(f"{path} is a corrupted safetensors file ({error}): fetch it again") from None


def _read_torch(path: Path) -> ForeignWeights:
    try:
        with open_torch_file(path) as file:
            if not (content := _entries(file.content)):
                raise OtherFileError(f"holds a {_kind(file.content)}, not a dictionary of weights: give a checkpoint")
            return ForeignWeights(
                tensors=_tensors(_weights(content), file, path.stat().st_size), license=_notice(content)
            )
    except OtherFileError as error:
        raise ValueError(f"{path} {_line(error)}") from None
    except UnsafeCallError as error:
        raise ValueError(
            f"{path} would call {_line(error)} if it were unpickled, which no weights need: get it from elsewhere, "
            "since it may be made to do harm"
        ) from None
    except Exception as error:  # a corrupted file can raise almost any exception
        reason = _line(error) or type(error).__name__
        raise ValueError(f"{path} is corrupted or cut short ({reason}): fetch it again") from None


def _line(error: Exception) -> str:
    """Make one printable line of a message, which may quote text from the file."""
    text = " ".join(str(error).split())
    return "".join(character if character.isprintable() else "?" for character in text)[: 2 * _MAX_NAME]


def _weights(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Find the dictionary of the weights in a checkpoint, which may be in one of its entries."""
    found = content
    for _ in range(_MAX_NESTED):
        keys = [key for key in _KEYS if key in found and not _is_tensor(found[key])]
        if not keys:
            break
        inner = next((inner for key in keys if (inner := _entries(found[key]))), None)
        if inner is None:
            raise OtherFileError(
                f"has an entry {keys[0]!r} that is a {_kind(found[keys[0]])}, not a dictionary of weights: save the "
                "state_dict() of the model"
            )
        found = inner
    return found


def _tensors(weights: Mapping[Any, Any], file: TorchFile, num_bytes_of_file: int) -> dict[str, Tensor]:
    for name, value in weights.items():
        if not isinstance(name, str):
            raise OtherFileError(f"has {name!r} where the name of a tensor belongs: give a checkpoint of weights")
        if not _is_tensor(value):
            raise OtherFileError(
                f"has {name[:_MAX_NAME]!r}, which is not a tensor but of type {_kind(value)}: give a checkpoint of "
                f"weights alone, or with them in one of the entries {', '.join(_KEYS)}"
            )
    # A tensor can claim a size larger than its storage.
    if sum(num_bytes(value) for value in weights.values()) > num_bytes_of_file:
        raise OtherFileError("claims more numbers than it holds: it is cut short, or made to do harm")
    tensors = {name: file.tensor(value) for name, value in weights.items()}
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise OtherFileError(f"has {name!r} of {tensor.dtype}: save real numbers")
    return tensors


def _is_tensor(value: Any) -> bool:
    return isinstance(value, StoredTensor)


def _entries(value: Any) -> Mapping[Any, Any]:
    """Entries of a dictionary of any class; empty for other objects."""
    return value if isinstance(value, dict) else value.entries if isinstance(value, StandIn) else {}


def _kind(value: Any) -> str:
    """Type of an object of a checkpoint, for messages."""
    return value.name[:80] if isinstance(value, StandIn) else type(value).__name__


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES * 2:  # twice: a compiled model may be wrapped, and a wrapped one compiled
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _unknown_kind(start: bytes) -> str:
    text = start.decode("utf-8", errors="replace")[:40]
    if text.isprintable() and "\ufffd" not in text:
        return f"is a text that begins with {text!r}, not weights: fetch the file itself"
    return (
        "is neither a checkpoint of PyTorch nor a safetensors file, or it is corrupted: fetch it again, or give a "
        "folder of Hugging Face"
    )


def _notice(holder: Mapping[str, Any]) -> str | None:
    notice = holder.get("license")
    return " ".join(notice.split())[:MAX_NOTICE] if isinstance(notice, str) and notice.strip() else None
