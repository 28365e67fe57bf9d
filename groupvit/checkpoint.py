"""Reads and writes checkpoints: folders with a complete model and, to resume training, the optimiser's state.

    model.safetensors   weights and batch statistics
    state.json          format version, model config, and values from the caller (step, samples seen, digests, ...)
    optimizer.pt        optional; read with `weights_only=True`

A checkpoint is written to a temporary folder beside its final one, which is then renamed. So a folder with the final
name is always complete. Paths are local; callers handle object storage.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from groupvit.config import ModelConfig, from_dict, to_dict
from groupvit.file_kinds import START_BYTES, other_kind
from groupvit.model import GroupViT

FORMAT_VERSION = 1
MODEL_FILE, STATE_FILE, OPTIMIZER_FILE = "model.safetensors", "state.json", "optimizer.pt"
_OWN_KEYS = ("format_version", "model")


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
        state: JSON-safe values to store in state.json. The keys `format_version` and `model` are reserved.
        optimizer_state: `optimizer.state_dict()`, with tensors and plain types only.

    Raises:
        ValueError: The folder exists, or `state` has a reserved key.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"checkpoint folder {folder} exists: give another one, or delete it first")
    reserved = sorted(set(_OWN_KEYS) & set(state or {}))
    if reserved:
        raise ValueError(f"checkpoint state has the reserved key {reserved[0]!r}: rename it")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process with the same id
    partial.mkdir(parents=True)
    try:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, partial / MODEL_FILE)
        if optimizer_state is not None:
            torch.save(optimizer_state, partial / OPTIMIZER_FILE)
        document = {"format_version": FORMAT_VERSION, "model": to_dict(model.config), **(state or {})}
        (partial / STATE_FILE).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        for file in partial.iterdir():
            _flush_to_disk(file)
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
        raise ValueError(f"{folder / STATE_FILE} is corrupted ({error}): use another checkpoint") from None
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
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{folder} is not a checkpoint: it has no {MODEL_FILE}") from None
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
        state = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} is not a checkpoint: it has no {STATE_FILE}") from None
    except (ValueError, RecursionError) as error:
        raise _corrupted(path, str(error)) from None
    if not isinstance(state, dict) or not set(_OWN_KEYS) <= set(state):
        raise ValueError(f"{folder} is not a checkpoint: {STATE_FILE} lacks one of {', '.join(_OWN_KEYS)}")
    if not isinstance(state["format_version"], int):
        raise ValueError(f"{path} is corrupted (format_version is not a number): use another checkpoint")
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
    if not path.exists():
        raise ValueError(f"{folder} has no {OPTIMIZER_FILE}: training cannot be continued from it")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a corrupted file can raise almost any exception
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


def _corrupted(path: Path, reason: str) -> ValueError:
    with path.open("rb") as file:
        kind = other_kind(file.read(START_BYTES))
    return ValueError(f"{path} {kind}" if kind else f"{path} is corrupted ({reason}): use another checkpoint")


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
