"""Curation on Ray Data: runs pieces of raw shards on actors that load the tagger once, shuffles the index by hash to
compare captions and images, and writes the files of the data set.

Each task publishes only complete files, and skips existing ones. Only the index passes through Ray, about 100 bytes per
sample.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import cv2
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from pipelines.cluster.causes import root_cause
from pipelines.curation.config import CurateConfig
from pipelines.curation.duplicates import (
    KEYS_SCHEMA,
    MARKS_SCHEMA,
    duplicate_keys,
    find_duplicates,
    mark_boilerplate,
    partition_of,
    resolve,
)
from pipelines.curation.files import write_file
from pipelines.curation.index import read_index
from pipelines.curation.opt_out import read_opt_out
from pipelines.curation.pieces import Report, add_nouns, curate_piece
from pipelines.curation.raw import Piece
from pipelines.curation.recaptions.pieces import RecaptionPiece
from pipelines.curation.recaptions.run import joined_recaptions
from pipelines.curation.steps import sample_steps

_ROWS_PER_PARTITION = 250_000  # of the index, some 25 MB
_PIECES_PER_TASK = 64  # whose part of the index is read at once
_MAX_BLOCKS = 4096  # that Ray has to track
_MAX_RESTARTS = 3  # of a process that dies, e.g. on an image that crashes a decoder


class PieceCurator:
    """Actor that loads once what is slow to load."""

    def __init__(self, config: CurateConfig, work: str) -> None:
        cv2.setNumThreads(1)  # there is one actor per CPU
        self._config, self._work = config, work
        self._steps = sample_steps(config, read_opt_out(config.opt_out)[0])
        with contextlib.suppress(ValueError):  # the first piece reports it
            add_nouns([], config.tagger)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Processes one piece. Returns errors instead of raising them, because Ray would add its own stack trace."""
        piece = Piece(**json.loads(batch["piece"][0]))
        try:
            return {"report": [curate_piece(piece, self._config, self._steps, self._work).to_json()], "error": [""]}
        except Exception as error:
            line = root_cause(error).line
            return {"report": [""], "error": [line if isinstance(error, ValueError) else f"{piece.uri}: {line}"]}


def run_pieces(pieces: Sequence[Piece], config: CurateConfig, work: str) -> Iterator[Report]:
    """Curates `pieces` in any order and yields each report when it is ready. Raises ValueError for an invalid one."""
    _quieten()
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    num_workers = min(config.num_workers or num_cpus, num_cpus, len(pieces))
    items = [{"piece": json.dumps(asdict(piece))} for piece in pieces]
    with warnings.catch_warnings():
        # Ray warns that this argument will get fixed names, but has none yet. Without it, Ray would retry an image that
        # crashes a decoder forever.
        warnings.filterwarnings("ignore", message=".*ray_remote_args_fn")
        reports = ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_BLOCKS)).map_batches(
            PieceCurator,  # pyright: ignore[reportArgumentType]
            fn_constructor_args=(config, work),
            batch_size=1,
            num_cpus=1,
            compute=ActorPoolStrategy(size=num_workers),
            ray_remote_args_fn=lambda: {"max_restarts": _MAX_RESTARTS, "max_task_retries": _MAX_RESTARTS},
        )
    for row in reports.iter_rows():
        if row["error"]:
            raise ValueError(row["error"])
        yield Report.from_json(row["report"])


def run_files(
    num_pieces: int,
    num_rows: int,
    num_captions: int,
    config: CurateConfig,
    source_names: Sequence[str],
    work: str,
    recaptions: Sequence[RecaptionPiece] = (),
) -> Iterator[tuple[int, int, int]]:
    """Finds duplicates and boilerplate among all samples and writes the files of the data set.

    Args:
        num_rows: Number of samples in all pieces.
        num_captions: Number of their captions.
        recaptions: Finished pieces of recaptions.

    Yields:
        For each finished file: its number, the number of its samples, and the number of rows that these are left of.
    """
    _quieten()
    num_files = max(1, round(num_rows / (config.rows_per_group * config.groups_per_file)))
    num_bands = 0 if config.near_duplicate_distance is None else config.near_duplicate_distance + 1
    num_partitions = -(-num_captions // _ROWS_PER_PARTITION)
    numbers = [
        {"first": first, "end": min(first + _PIECES_PER_TASK, num_pieces)}
        for first in range(0, num_pieces, _PIECES_PER_TASK)
    ]
    placed = ray.data.from_items(numbers).map_batches(
        _read_index,  # pyright: ignore[reportArgumentType]
        fn_kwargs={"work": work, "num_files": num_files, "num_partitions": num_partitions},
        batch_size=1,
    )
    rows = (
        placed.groupby("partition", num_partitions=num_partitions)
        .map_groups(partial(_mark_boilerplate, max_images=config.max_images_per_caption), batch_format="pyarrow")
        .materialize()  # used twice
    )
    num_key_partitions = num_partitions * (2 + num_bands)
    found = (
        rows.map_batches(
            partial(_duplicate_keys, distance=config.near_duplicate_distance, num_partitions=num_key_partitions),
            batch_format="pyarrow",
            batch_size=None,  # pyright: ignore[reportArgumentType]
        )
        .groupby("partition", num_partitions=num_key_partitions)
        .map_groups(partial(find_duplicates, distance=config.near_duplicate_distance), batch_format="pyarrow")
    )
    marks = (
        found.repartition(1)
        .map_batches(
            partial(_resolve, distance=config.near_duplicate_distance, max_captions=config.max_captions),
            batch_format="pyarrow",
            batch_size=None,  # pyright: ignore[reportArgumentType]
        )
        .materialize()
    )
    others = [marks]
    if recaptions:
        joined = joined_recaptions(numbers, recaptions, num_rows, num_files, marks, config, work)
        others.append(joined.materialize())
    others = [part for part in others if part.count()]  # without rows, Ray does not know the columns
    files = (
        (rows.union(*others) if others else rows)
        .groupby("file", num_partitions=min(num_files, _MAX_BLOCKS))
        .map_groups(
            partial(
                _write_file,
                out=config.out,
                work=work,
                source_names=source_names,
                rows_per_group=config.rows_per_group,
                max_captions=config.max_captions,
                origins=config.origins,
                tagger=config.tagger,
            ),
            batch_format="pyarrow",
        )
    )
    for row in files.iter_rows():
        yield row["file"], row["num_samples"], row["num_rows"]


def _quieten() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False  # our progress is one line
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _read_index(batch: Mapping[str, Any], *, work: str, num_files: int, num_partitions: int) -> pa.Table:
    rows = read_index(work, range(int(batch["first"][0]), int(batch["end"][0])), num_files).select(MARKS_SCHEMA.names)
    partition = partition_of(rows.column("caption").to_numpy(), 0, num_partitions)
    return rows.append_column(KEYS_SCHEMA.field("partition"), pa.array(partition))


def _mark_boilerplate(rows: pa.Table, *, max_images: int | None) -> pa.Table:
    return mark_boilerplate(rows.select(MARKS_SCHEMA.names), max_images)


def _duplicate_keys(rows: pa.Table, *, distance: int | None, num_partitions: int) -> pa.Table:
    return duplicate_keys(rows, distance, num_partitions) if rows.num_rows else KEYS_SCHEMA.empty_table()


def _resolve(found: pa.Table, *, distance: int | None, max_captions: int) -> pa.Table:
    return resolve(found, distance, max_captions) if found.num_rows else MARKS_SCHEMA.empty_table()


def _write_file(rows: pa.Table, **places: Any) -> dict[str, list[int]]:
    number, num_samples, num_rows = write_file(rows, **places)
    return {"file": [number], "num_samples": [num_samples], "num_rows": [num_rows]}
