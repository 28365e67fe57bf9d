"""Imports weights: makes a checkpoint from released weights or from a Hugging Face folder.

    groupvit import-weights group_vit_gcc_yfcc_30e.pth --out checkpoints/released
    groupvit import-weights FOLDER_OF_HUGGING_FACE --out s3://models/groupvit

`evaluate`, `segment` and `export` accept the result like any other checkpoint. It holds the licence of the weights in
state.json and on its card.
"""

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from groupvit import checkpoint
from groupvit.config import to_dict
from groupvit.interop import official
from groupvit.interop.foreign_weights import read_weights
from groupvit.interop.hugging_face import OLD_WEIGHTS_FILE, READ_FILES, WEIGHTS_FILE, read_folder
from groupvit.interop.model_card import CARD_FILE, LICENSE_KEY, RELEASED_NOTICE, UNKNOWN, card, num_parameters
from groupvit.model import GroupViT
from pipelines import storage
from pipelines.models.new_folder import new_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportWeightsConfig:
    """Makes a checkpoint from imported weights."""

    source: Annotated[str, tyro.conf.Positional]
    """File with the names of the released checkpoints (.pth or .safetensors), or folder of Hugging Face's GroupViTModel
    (config.json and model.safetensors or pytorch_model.bin): a local path or s3:// URI."""
    out: str
    """Folder of the new checkpoint. It must not exist yet: a local path or s3:// URI."""
    num_heads: tuple[int, ...] | None = None
    """Number of attention heads in each stage of the image encoder, e.g. 6 6 6. A file with the released names does not
    contain it. None: one head per 64 channels."""
    license: Annotated[str | None, tyro.conf.arg(aliases=["--licence"])] = None
    """Licence notice of the weights. None: the notice in the source, or else that of the released weights, which is
    non-commercial."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """Weights that were read from the source."""

    model: GroupViT
    kind: Literal["official", "hugging_face"]
    file: Path
    """Local file of the weights."""
    license: str | None
    """Licence notice in the source, or None."""


def import_weights(config: ImportWeightsConfig) -> dict[str, Any]:
    """Reads the source, writes the checkpoint with its card, and returns a summary.

    Raises ValueError for invalid arguments or invalid weights.
    """
    with new_folder(config.out, last=checkpoint.STATE_FILE) as folder:
        with _local(config.source) as path:
            try:
                source = _read(path, config.num_heads)
            except ValueError as error:
                reason = str(error).replace(str(path), config.source)  # name the source, not its local copy
                raise ValueError(reason if config.source in reason else f"{config.source}: {reason}") from None
            digest = _sha256(source.file)
        notice = config.license or source.license or RELEASED_NOTICE
        notice = None if notice == UNKNOWN else " ".join(notice.split())
        name = config.source.rstrip("/").rpartition("/")[2]
        origin = {"kind": source.kind, "name": name, "file": source.file.name, "sha256": digest}
        state = {"step": 0, "imported_from": origin}
        if notice is not None:
            state[LICENSE_KEY] = notice
        checkpoint.save(folder, source.model, state=state)
        (folder / CARD_FILE).write_text(_card(source, name, digest, notice), encoding="utf-8")
    parameters = num_parameters(source.model)
    print(f"{config.out}: {parameters:,} parameters from {config.source}")
    print(f"licence of the weights: {notice or 'none given'}")
    return {
        "out": config.out,
        "source": config.source,
        **origin,
        "parameters": parameters,
        "model": to_dict(source.model.config),
        "license": notice,
    }


def _read(path: Path, num_heads: tuple[int, ...] | None) -> _Source:
    if path.is_dir():
        if num_heads is not None:
            raise ValueError(f"num_heads={num_heads}: the folder's config.json tells the heads, so leave it out")
        config, weights = read_folder(path)
        model = official.from_hugging_face(weights.tensors, config)
        file = path / WEIGHTS_FILE if (path / WEIGHTS_FILE).is_file() else path / OLD_WEIGHTS_FILE
        return _Source(model=model, kind="hugging_face", file=file, license=weights.license)
    weights = read_weights(path)
    model = official.from_official(weights.tensors, num_heads=num_heads)
    return _Source(model=model, kind="official", file=path, license=weights.license)


@contextmanager
def _local(source: str) -> Iterator[Path]:
    """Yields the local path of the source's file or folder. A remote one is downloaded for the time of the context."""
    if "://" not in source:
        path = Path(source).expanduser()
        if not path.exists():
            raise ValueError(f"source={source} does not exist: give a file of weights, or a Hugging Face folder")
        yield path
        return
    storage.check_bucket(source)
    with tempfile.TemporaryDirectory() as temporary:
        names = storage.list_files(source)
        target = Path(temporary) / source.rstrip("/").rpartition("/")[2]
        if names:
            target.mkdir()
            for name in set(READ_FILES) & set(names):
                storage.copy(storage.join(source, name), str(target / name))
        else:
            try:
                storage.copy(source, str(target))
            except FileNotFoundError:
                raise ValueError(
                    f"source={source} does not exist: give a file of weights, or a Hugging Face folder"
                ) from None
        yield target


def _card(source: _Source, name: str, digest: str, notice: str | None) -> str:
    kinds = {"official": "a file with the names of the released checkpoints", "hugging_face": "a Hugging Face folder"}
    return card(
        source.model,
        title="GroupViT checkpoint, imported",
        origin=f"Imported from `{name}`, {kinds[source.kind]}. sha256 of `{source.file.name}`: `{digest}`.",
        license=notice,
        usage="`groupvit evaluate`, `groupvit segment` and `groupvit export` take this folder as `--checkpoint`.",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
