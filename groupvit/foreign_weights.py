"""Reads files of weights that others made: the tensors, and nothing else of them.

No code of such a file is run. PyTorch's own formats are read by its restricted reader, for which the few kinds of
objects that training scripts save beside their weights (configs, numpy's numbers) are replaced by empty stand-ins; a
file that holds anything else is refused. What is read cannot be larger than the file.
"""

import dataclasses
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

MAX_NOTICE = 2000
"""Characters of a licence notice that are taken over."""

_NAMED_PREFIX = "weights/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForeignWeights:
    """What a file of weights held."""

    tensors: dict[str, Tensor]
    license: str | None
    """The licence notice in the file; None without one."""


class _Skipped:
    """Stands for an object that is not wanted, whatever its class was given."""

    def __new__(cls, *arguments: Any) -> "_Skipped":
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class _SkippedMapping:
    """Stands for a dictionary of another class; the reader fills dictionaries of the known ones alone."""

    def __new__(cls, *arguments: Any) -> Any:
        return OrderedDict()


_STAND_INS: dict[str, type] = {
    "argparse.Namespace": _Skipped,
    "yacs.config.CfgNode": _SkippedMapping,
    "easydict.EasyDict": _SkippedMapping,
    "addict.addict.Dict": _SkippedMapping,
    "mmcv.utils.config.ConfigDict": _SkippedMapping,
    "mmengine.config.config.ConfigDict": _SkippedMapping,
    "collections.defaultdict": _SkippedMapping,
    "numpy.core.multiarray.scalar": _Skipped,
    "numpy._core.multiarray.scalar": _Skipped,
    "numpy.core.multiarray._reconstruct": _Skipped,
    "numpy._core.multiarray._reconstruct": _Skipped,
    "numpy.dtype": _Skipped,
    "numpy.ndarray": _Skipped,
    "_codecs.encode": _Skipped,
}


def read_weights(path: Path) -> ForeignWeights:
    """The tensors of a `.safetensors` file, or of a file that `torch.save` made (entry `model`, if it has one).

    Names that begin with `weights/` lose it, and are then the only ones taken.

    Raises:
        ValueError: no such file, damaged, of another kind, or with objects that are not weights.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a file of weights")
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
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
        raise ValueError(f"{path} is no safetensors file, or a damaged one ({error}): fetch it again") from None


def _read_torch(path: Path) -> ForeignWeights:
    _check_archive(path)
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # a damaged file fails in as many ways as a reader has lines
        raise _damaged(path, error) from None
    unknown = sorted(set(foreign) - set(_STAND_INS))
    if unknown:
        raise ValueError(
            f"{path} holds objects that could run code and are not read ({', '.join(unknown[:3])}): if you trust it, "
            "save its tensors alone with safetensors.torch.save_file, and give that file"
        )
    try:
        with torch.serialization.safe_globals([(_STAND_INS[name], name) for name in foreign]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _damaged(path, error) from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of weights: give a checkpoint")
    weights = content.get("model", content)
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"{path}: its entry 'model' is not a dictionary of weights: give a checkpoint")
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{path} has {name!r}, which is not a tensor: give a checkpoint with an entry 'model'")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            raise ValueError(f"{path} has {name!r} as a {tensor.layout} {tensor.dtype} tensor: save plain numbers")
    # A tensor can claim to be larger than the numbers it stands on.
    if sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) > path.stat().st_size:
        raise ValueError(f"{path} claims more numbers than it holds: it is damaged or made to do harm")
    return ForeignWeights(tensors=dict(weights), license=_notice(content))


def _check_archive(path: Path) -> None:
    """ValueError unless it is what `torch.save` writes since PyTorch 1.6: a zip archive, uncompressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{path} is no checkpoint of PyTorch 1.6 or later, or is cut short ({error}): fetch it again, or give a "
            ".safetensors file or a Hugging Face folder"
        ) from None
    stored = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or stored > path.stat().st_size:
        raise ValueError(f"{path} is a compressed archive, which torch.save does not write: give the checkpoint itself")


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    return ValueError(f"{path} is no checkpoint of tensors, or a damaged one ({reason}): fetch it again")


def _notice(holder: Mapping[str, Any]) -> str | None:
    notice = holder.get("license")
    return " ".join(notice.split())[:MAX_NOTICE] if isinstance(notice, str) and notice.strip() else None
