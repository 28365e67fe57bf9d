"""Reads files by `torch.save` without PyTorch's reader. Tensors stay in the file until they are requested.

It supports both formats: the zip archive of PyTorch 1.6 and later (`NAME/data.pkl`, and one file per storage in
`NAME/data/`), and the older one (five pickles, then the storages). `groupvit.interop.inert_pickle` reads the pickles.
"""

import dataclasses
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from groupvit.interop.inert_pickle import StandIn, StoredTensor, load

ZIP_MAGIC = b"PK\x03\x04"
_OLD_MAGIC = 0x1950A86A20F9469CFC6C

_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    # Tensors of these are not read, but the older format needs their sizes to find the storages after them.
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.QInt8Storage": torch.int8,
    "torch.QUInt8Storage": torch.uint8,
    "torch.QInt32Storage": torch.int32,
}


class OtherFileError(ValueError):
    """The file is complete but of another kind. The message follows the file's name."""


class _Storage(StandIn):
    """Numbers of tensors, in the file."""

    key: str
    kind: str
    """PyTorch's class of the storage. Those in `_DTYPES` are supported."""

    @property
    def dtype(self) -> torch.dtype:
        if self.kind not in _DTYPES:
            raise OtherFileError(f"has numbers of {self.kind}, which are not read: save weights as float32")
        return _DTYPES[self.kind]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchFile:
    """An open file."""

    content: Any
    """The saved object. Tensors are `StoredTensor`; other objects, including subclasses of dict, are `StandIn`."""
    tensor: Callable[[StoredTensor], Tensor]
    """Reads a tensor, which may share memory with others. ValueError if some of its numbers are not in the file."""


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Open a file for the block. A corrupted file can raise any exception, here or in the block.

    Raises:
        OtherFileError: `torch.save` did not write the file, or it is not a checkpoint.
        UnsafeCallError: The file calls a function with system access.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
            with zipfile.ZipFile(path) as archive:
                yield _open_archive(archive, path)
        else:
            file.seek(0)
            yield _open_old(file)


def num_bytes(tensor: StoredTensor) -> int:
    """Size of the tensor in bytes. ValueError if its storage or shape is invalid."""
    storage, _, size, _ = _place(tensor)
    return math.prod(size) * storage.dtype.itemsize


def _open_archive(archive: zipfile.ZipFile, path: Path) -> TorchFile:
    entries = archive.infolist()
    pickles = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
    if not pickles:
        names = ", ".join(sorted(entry.filename for entry in entries)[:3]) or "nothing"
        raise OtherFileError(f"is a zip archive of {names}, not a checkpoint: extract it, and give the file of weights")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in archive.namelist():
        raise OtherFileError("is a TorchScript program, not a checkpoint: save the state_dict() of its model")
    stored = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or stored > path.stat().st_size:
        raise OtherFileError("is a compressed archive, which torch.save does not write: give the checkpoint itself")
    if f"{root}byteorder" in archive.namelist() and _read(archive, f"{root}byteorder") != b"little":
        raise OtherFileError("was written on a big-endian machine: save its tensors as .safetensors there")
    content = load(io.BytesIO(_read(archive, pickles[0])), _storage_of)
    return TorchFile(content=content, tensor=_Maker(lambda key: _read(archive, f"{root}data/{key}")))


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a file of an archive, and verify its checksum if there is one."""
    entry = archive.getinfo(name)
    if getattr(entry, "CRC", None) == 0:
        del entry.CRC  # torch.serialization.set_crc32_options(False) writes no checksum
    return archive.read(entry)


def _open_old(file: BinaryIO) -> TorchFile:
    storages: dict[str, _Storage] = {}

    def remembered(identifier: Any) -> _Storage:
        storage = _storage_of(identifier)
        return storages.setdefault(storage.key, storage)

    if load(file, remembered) != _OLD_MAGIC:
        raise OtherFileError("is a plain pickle, not a checkpoint: save its tensors with torch.save")
    _, machine, content, keys = (load(file, remembered) for _ in range(4))
    if not machine["little_endian"]:
        raise OtherFileError("was written on a big-endian machine: save its tensors as .safetensors there")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        [length] = struct.unpack("<q", file.read(8))
        size = length * storages[key].dtype.itemsize
        places[key] = (file.tell(), size)
        file.seek(size, io.SEEK_CUR)

    def read(key: str) -> bytes:
        start, size = places[key]
        file.seek(start)
        return file.read(size)  # fewer bytes if the file is truncated

    return TorchFile(content=content, tensor=_Maker(read))


def _storage_of(identifier: Any) -> _Storage:
    kind, storage_class, key, _, _, *view = identifier
    if kind != "storage" or not isinstance(key, str) or any(view):
        raise pickle.UnpicklingError("its tensors lie in another way than torch.save writes them")
    storage = _Storage()
    storage.key, storage.kind = key, storage_class.name
    return storage


class _Maker:
    """Reads stored tensors. Each storage is read once."""

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self._numbers: dict[str, Tensor] = {}

    def __call__(self, tensor: StoredTensor) -> Tensor:
        storage, offset, size, stride = _place(tensor)
        if storage.key not in self._numbers:
            buffer = bytearray(self._read(storage.key))
            empty = torch.empty(0, dtype=storage.dtype)
            self._numbers[storage.key] = torch.frombuffer(buffer, dtype=storage.dtype) if buffer else empty
        numbers = self._numbers[storage.key]
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if 0 not in size and last >= len(numbers):
            raise ValueError(f"a tensor of shape {size} needs {last + 1} numbers, and {len(numbers)} are in the file")
        return numbers.as_strided(size, stride, offset)


def _place(tensor: StoredTensor) -> tuple[_Storage, int, tuple[int, ...], tuple[int, ...]]:
    storage, offset, size, stride = tensor.place
    whole = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or not all(isinstance(number, int) and number >= 0 for number in whole):
        raise ValueError("a tensor has neither shape nor place")
    return storage, offset, tuple(size), tuple(stride)
