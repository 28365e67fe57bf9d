"""Reads and writes checkpoints: folders with a complete model and, to resume training, the optimiser's state.

    model.safetensors   weights and batch statistics
    state.json          format version, model config, digests of the files, and values from the caller (step, ...)
    optimizer.pt        optional; read with `weights_only=True`

A checkpoint is written to a temporary folder beside its final one, which is then renamed. So a folder with the final
name is always complete. Whatever is read is checked against its digest (checkpoint_files.py). All paths are local.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from groupvit.checkpoint_files import (
    DIGEST_KEY,
    FILES_KEY,
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    CorruptedError,
    check_file,
    check_optimizer_file,
    corrupted,
    digest_of,
    read_state,
    write_state,
)
from groupvit.config import ModelConfig, from_dict, to_dict
from groupvit.file_kinds import START_BYTES
from groupvit.model import GroupViT

FORMAT_VERSION = 1
_OWN_KEYS = ("format_version", "model")
_RESERVED_KEYS = {*_OWN_KEYS, FILES_KEY, DIGEST_KEY}
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")


def save(
    folder: str | Path,
    model: GroupViT,
    *,
    state: dict[str, Any] | None = None,
    optimizer_state: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint. The folder appears only when it is complete.

    Args:
        folder: Must not exist. Missing parent folders are created.
        state: JSON-safe values to store in state.json. The keys `format_version`, `model`, `files` and `sha256` are
            reserved.
        optimizer_state: `optimizer.state_dict()`, with tensors and plain types only.

    Raises:
        ValueError: The folder exists, or `state` has a reserved key.
        OSError: A file could not be written. It is named.
    """
    write(folder, model.config, model.state_dict(), state=state, optimizer_state=optimizer_state)


def write(
    folder: str | Path,
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    *,
    state: dict[str, Any] | None = None,
    optimizer_state: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint as `save` does, with the model given by its config and its `state_dict`."""
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"checkpoint folder {folder} exists: give another one, or delete it first")
    reserved = sorted(_RESERVED_KEYS & set(state or {}))
    if reserved:
        raise ValueError(f"checkpoint state has the reserved key {reserved[0]!r}: rename it")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process with the same id
    partial.mkdir(parents=True)
    try:
        with _naming_file(partial / MODEL_FILE, folder / MODEL_FILE) as path:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path)
        if optimizer_state is not None:
            named = _naming_file(partial / OPTIMIZER_FILE, folder / OPTIMIZER_FILE)
            with named as path, path.open("wb") as file, _without_crc32():
                torch.save(optimizer_state, file)
        files = {path.name: digest_of(path) for path in sorted(partial.iterdir())}
        document = {"format_version": FORMAT_VERSION, "model": to_dict(config), **(state or {}), FILES_KEY: files}
        with _naming_file(partial / STATE_FILE, folder / STATE_FILE):
            write_state(partial, document)
        for path in partial.iterdir():
            with _naming_file(path, folder / path.name):
                _flush_to_disk(path)
        partial.rename(folder)
        _flush_to_disk(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load(folder: str | Path) -> GroupViT:
    """Load the model of a checkpoint: float32, on the CPU, in evaluation mode.

    Raises:
        ValueError: The folder is not a checkpoint, a newer version wrote it, or its tensors do not fit its config or
            are not finite.
    """
    folder = Path(folder)
    values = load_state(folder)["model"]
    try:
        config = from_dict(ModelConfig, values)
    except ValueError as error:
        raise ValueError(f"{folder / STATE_FILE}: {error}") from None
    except TypeError as error:  # a value does not have the field's type
        raise CorruptedError(f"{folder / STATE_FILE} is corrupted ({error}): use another checkpoint") from None
    _check_size(config, folder / MODEL_FILE)
    model = GroupViT(config)
    load_weights(model, folder)
    return model.eval()


def load_weights(model: GroupViT, folder: str | Path) -> None:
    """Copy a checkpoint's weights and batch statistics into a model with the same config, on the model's device.

    Raises:
        ValueError: The folder is not a checkpoint, or its tensors do not match the model's or are not finite.
    """
    path = Path(folder) / MODEL_FILE
    check_file(path.parent, MODEL_FILE, load_state(folder))
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise CorruptedError(f"{folder} is not a checkpoint: it has no {MODEL_FILE}") from None
    except SafetensorError as error:
        raise _corrupted(path, str(error)) from None
    check_tensors(weights, model.state_dict(), source=str(path))
    check_finite(weights, source=str(path), advice="use another checkpoint")
    model.load_state_dict(weights)


def load_state(folder: str | Path) -> dict[str, Any]:
    """Read state.json of a checkpoint: `format_version`, `model` (config as a dict) and the `state` given to `save`.

    Raises:
        ValueError: The folder is not a checkpoint, or a newer version wrote it.
    """
    path = Path(folder) / STATE_FILE
    try:
        state = read_state(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} is not a checkpoint: it has no {STATE_FILE}") from None
    if not set(_OWN_KEYS) <= set(state):
        raise ValueError(f"{folder} is not a checkpoint: {STATE_FILE} lacks one of {', '.join(_OWN_KEYS)}")
    if not isinstance(state["format_version"], int):
        raise CorruptedError(f"{path} is corrupted (format_version is not a number): use another checkpoint")
    if state["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format_version={state['format_version']}, newer than {FORMAT_VERSION}, the last one known "
            "here: upgrade groupvit"
        )
    for name, kind in (("model", dict), ("config", dict), ("step", int), ("license", str)):
        if not isinstance(state.get(name), (kind, type(None))):
            raise ValueError(f"{path} is corrupted ({name} is not {kind.__name__}): use another checkpoint")
    return state


def load_optimizer_state(folder: str | Path) -> dict[str, Any]:
    """Load the optimiser's `state_dict` of a checkpoint onto the CPU.

    Raises:
        ValueError: The checkpoint has none, or it is corrupted, or some numbers are not finite.
    """
    path = Path(folder) / OPTIMIZER_FILE
    check_file(path.parent, OPTIMIZER_FILE, load_state(folder))
    check_optimizer_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupted file can raise almost any exception
        if isinstance(error, (OSError, MemoryError)):
            raise
        raise _corrupted(path, str(error).partition("\n")[0][:200] or type(error).__name__) from None
    check_finite(_tensors_of(state), source=str(path), advice="use another checkpoint")
    return state


def _check_size(config: ModelConfig, path: Path) -> None:
    """Raise ValueError if a config describes another model than a file holds, before the model takes memory. Leave
    files that cannot be read to `load_weights`."""
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError):
        return
    source = f"{path.with_name(STATE_FILE)} does not describe {MODEL_FILE}"
    if sum(config.image.depths) + config.text.depth > len(shapes):  # before the blocks take time
        raise ValueError(f"{source}, which has only {len(shapes)} tensors: use another checkpoint")
    try:
        with torch.device("meta"):
            expected = GroupViT(config).state_dict()
            given = {name: torch.empty(shape, dtype=torch.float32) for name, shape in shapes.items()}
    except (RuntimeError, TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"{source} ({reason}): use another checkpoint") from None
    check_tensors(given, expected, source=str(path))


def check_tensors(given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, source: str) -> None:
    """Check that tensors have exactly the expected names and shapes, and floating point numbers where expected.

    Args:
        given: Tensors that were read.
        expected: Tensors of the model.
        source: Name of the file or object that was read, for the message.

    Raises:
        ValueError: Something differs. The message is one line.
    """
    problems = [f"lacks {name}" for name in expected if name not in given]
    problems += [f"has an unknown tensor {name}" for name in given if name not in expected]
    problems += [
        f"has {name} with shape {tuple(given[name].shape)} where {tuple(tensor.shape)} is expected"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    problems += [
        f"has {name} of {given[name].dtype}, which is not floating point"
        for name, tensor in expected.items()
        if name in given and tensor.is_floating_point() and not given[name].is_floating_point()
    ]
    if problems:
        more = f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else ""
        raise ValueError(f"{source} {problems[0]}{more}: it does not fit the model's config")


def check_finite(tensors: Mapping[str, torch.Tensor], *, source: str, advice: str) -> None:
    """Raise a one-line ValueError that names the first tensor with NaN or infinite numbers, if there is one."""
    for name, tensor in tensors.items():
        # Checked in float32, which models compute in: a float64 number can overflow there.
        if tensor.is_floating_point() and not (finite := tensor.float().isfinite()).all():
            count = tensor.numel() - int(finite.sum())
            value = tensor.float()[~finite][0].item()
            raise ValueError(f"{source} has {name}, in which {count} of {tensor.numel()} numbers are {value}: {advice}")


def _tensors_of(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Collect the tensors in nested dictionaries and lists, keyed by their dotted paths."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: dict[str, torch.Tensor] = {}
    for key, entry in entries:
        found |= _tensors_of(entry, f"{name}.{key}" if name else str(key))
    return found


def _corrupted(path: Path, reason: str) -> CorruptedError:
    with path.open("rb") as file:
        return corrupted(str(path), file.read(START_BYTES), reason)


@contextmanager
def _without_crc32() -> Iterator[None]:
    """Let torch compute no checksums, which take half of the time of saving. The sha256 takes their place."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


@contextmanager
def _naming_file(path: Path, name: Path) -> Iterator[Path]:
    """Raise an OSError with the final `name` of a file if `path` cannot be written, e.g. because the disk is full."""
    try:
        yield path
    except (OSError, SafetensorError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch raises an error of its own
        if isinstance(cause, OSError) and cause.errno is not None:
            number = cause.errno
        elif found := _SYSTEM_ERROR.search(str(error)):  # safetensors keeps only the text
            number = int(found[1])
        else:
            raise
        raise OSError(number, os.strerror(number), str(name)) from error


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
