"""Reads many row groups of a data set in parallel, with the threads of one process."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import storage
from pipelines.dataset.format import DatasetInfo, read_row_groups

Task = TypeVar("Task")
Result = TypeVar("Result")

_GROUPS_PER_RUN = 8


@dataclass(frozen=True, kw_only=True)
class Run:
    """Some row groups of one file, few enough for one task."""

    file: int
    """Index in `DatasetInfo.files`."""
    groups: tuple[int, ...]
    """Numbered across all files, ascending."""


def runs_of(info: DatasetInfo, groups: npt.NDArray[np.int64]) -> Iterator[Run]:
    """Splits ascending `groups` into runs: at each change of file and after a few groups."""
    files = np.searchsorted(info.first_groups, groups, side="right") - 1
    for file, of_file in itertools.groupby(zip(files.tolist(), groups.tolist(), strict=True), key=lambda pair: pair[0]):
        numbers = [group for _, group in of_file]
        for start in range(0, len(numbers), _GROUPS_PER_RUN):
            yield Run(file=file, groups=tuple(numbers[start : start + _GROUPS_PER_RUN]))


def read_columns(info: DatasetInfo, run: Run, columns: Sequence[str]) -> pa.Table:
    """Reads `columns` of the row groups of `run`. Raises ValueError, in one line, if they are corrupted."""
    uri = storage.join(info.uri, info.files[run.file])
    row_groups = [group - int(info.first_groups[run.file]) for group in run.groups]

    def read() -> pa.Table:
        return read_row_groups(storage.open_parquet(uri), row_groups, columns)

    with storage.reporting_corruption(uri, "`groupvit inspect --verify` shows what is corrupted"):
        return storage.retry(read, uri)


def in_threads(
    function: Callable[[Task], Result], tasks: Iterable[Task], num_threads: int | None = None
) -> Iterator[Result]:
    """Yields results in the order of `tasks`. Runs only a few tasks at a time (None: one per CPU), to limit memory."""
    num_threads = num_threads or os.cpu_count() or 1
    under_way: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for task in tasks:
            under_way.append(pool.submit(function, task))
            if len(under_way) > 2 * num_threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
