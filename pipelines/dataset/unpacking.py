"""The size of row groups in memory, checked before they are read."""

from collections.abc import Sequence

import psutil
import pyarrow.parquet as pq


def check_unpacked_size(file: pq.ParquetFile, row_groups: Sequence[int]) -> None:
    """Raises ValueError, in one line without the file's name, if row groups by their own account unpack to more bytes
    than this machine has free memory. What dictionaries unpack to beyond that is not known before it is read."""
    unpacked = sum(max(file.metadata.row_group(index).total_byte_size, 0) for index in row_groups)
    free = psutil.virtual_memory().available
    if unpacked > free:
        which = f"row group {row_groups[0]} unpacks" if len(row_groups) == 1 else f"{len(row_groups)} row groups unpack"
        raise ValueError(f"{which} to {unpacked:,} bytes, more than the {free:,} of free memory")
