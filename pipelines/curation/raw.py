"""Raw shards of any format: lists them, cuts them into pieces of work, and reads their rows in small batches.

A piece is some consecutive groups of rows of a shard. `pipelines.curation.formats` knows the formats.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipelines import storage
from pipelines.curation.config import CurateConfig, Source
from pipelines.curation.formats import folder, parquet, tar
from pipelines.curation.formats.columns import parse_columns
from pipelines.curation.formats.places import Place, look, nothing_found
from pipelines.curation.formats.shard import Columns, Piece, Row, Shard
from pipelines.curation.formats.shard import UnreadableShardError as UnreadableShardError
from pipelines.dataset.raw_shards import raw_shards, read_stats

_NUM_THREADS = 32  # that wait for object storage
_TRIED = 3  # tars to find out their average sample


def read_shards(sources: Sequence[Source], columns: Sequence[str] = ()) -> list[Shard]:
    """Looks what the sources are, and describes all their shards, in order. Unreadable shards have an error.

    Args:
        columns: See `CurateConfig.columns`.

    Raises:
        ValueError: No shard can be read, or a download is not finished.
    """
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        tasks = [task for index, source in enumerate(sources) for task in _tasks(index, source, columns)]
        return list(threads.map(lambda task: task(), tasks))


def _tasks(index: int, source: Source, columns: Sequence[str]) -> list[Callable[[], Shard]]:
    """Returns a function for each shard that describes it."""
    place = look(source.uri)
    if place.format == "tar":
        return _tars(index, place, _pairs(columns))
    versions = storage.list_versions(place.folder)
    if place.format == "folder":
        assert place.names is not None
        [name] = place.names
        return [lambda: folder.read_shard(index, place.folder, name, versions[name], _pairs(columns))]
    wanted = parse_columns(columns)
    if place.names is not None:
        named = [(storage.join(place.folder, name), versions[name], ()) for name in place.names]
    else:
        named = _list_download(source.uri)
    return [lambda shard=shard: parquet.read_shard(index, *shard, wanted) for shard in named]


def _tars(index: int, place: Place, wanted: Columns) -> list[Callable[[], Shard]]:
    assert place.names is not None
    versions = storage.list_versions(place.folder)
    stats = read_stats(place.folder, ending=".tar")
    unfinished = [name for name in place.names if stats and _number(name) not in stats]
    if unfinished:
        raise ValueError(
            f"raw={place.folder}: {len(unfinished):,} tars have no statistics beside them, first {unfinished[0]}: the "
            "download is not finished; finish it first, or give a range of those that are"
        )
    uris = {name: storage.join(place.folder, name) for name in place.names}
    average = next(filter(None, map(tar.bytes_per_sample, list(uris.values())[:_TRIED])), None)

    def describe(name: str) -> Shard:
        num_samples = tar.read_index(frozenset(versions), place.folder, name, stats.get(_number(name)))
        return tar.read_shard(index, uris[name], versions[name], wanted, num_samples, average)

    return [lambda name=name: describe(name) for name in place.names]


def _number(name: str) -> int:
    stem = name.partition(".")[0]
    return int(stem) if stem.isascii() and stem.isdigit() else -1


def _pairs(columns: Sequence[str]) -> Columns:
    return tuple((field, name) for field, names in parse_columns(columns).items() for name in names)


def _list_download(uri: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """Returns URI, version and superseded rows of each shard of a folder of parquet, in order."""
    try:
        found = raw_shards(uri)
    except ValueError as error:
        storage.check_bucket(uri)
        raise ValueError(f"raw={error}{nothing_found(uri)}") from None
    if not found.finished:
        raise ValueError(f"raw={uri}: its download is not finished; give the same `groupvit download` again first")
    folders = {shard.uri.rpartition("/")[0] for shard in found.shards}
    versions = {folder: storage.list_versions(folder) for folder in folders}
    listed: list[tuple[str, str, tuple[int, ...]]] = []
    for shard in found.shards:
        in_folder, _, name = shard.uri.rpartition("/")
        listed.append((shard.uri, versions[in_folder][name], tuple(shard.superseded.tolist())))
    return listed


def pieces_of(shards: Sequence[Shard], rows_per_piece: int) -> list[Piece]:
    pieces: list[Piece] = []
    first_of_source: dict[int, int] = {}
    for shard in shards:
        first = num_rows = 0
        for group, rows in enumerate(shard.rows):
            num_rows += rows
            if num_rows >= rows_per_piece or group == len(shard.rows) - 1:
                pieces.append(
                    Piece(
                        number=len(pieces),
                        source=shard.source,
                        first_of_source=first_of_source.setdefault(shard.source, len(pieces)),
                        uri=shard.uri,
                        first=first,
                        end=group + 1,
                        num_rows=num_rows,
                        superseded=shard.superseded,
                        format=shard.format,
                        columns=shard.columns,
                        counted=shard.counted,
                        offset=shard.offsets[first] if shard.offsets else 0,
                    )
                )
                first, num_rows = group + 1, 0
    return pieces


def read_rows(piece: Piece) -> Iterator[list[Row]]:
    """Yields the rows of a piece in batches of up to 64, by our names of their values.

    Raises UnreadableShardError for a corrupted shard, after yielding the rows that can be read, and OSError if storage
    fails.
    """
    reader = {"parquet": parquet.read_rows, "tar": tar.read_rows, "folder": folder.read_rows}
    return reader[piece.format](piece)


def check_shards(shards: Sequence[Shard], config: CurateConfig) -> None:
    """Raises ValueError for the first shard that cannot be read, unless such shards are to be skipped."""
    unreadable = [shard.error for shard in shards if shard.error]
    if unreadable and not config.skip_unreadable_shards:
        more = f" (and {len(unreadable) - 1} more such)" if len(unreadable) > 1 else ""
        raise ValueError(f"{unreadable[0]}{more}")
    if not any(sum(shard.rows) for shard in shards):
        raise ValueError(f"raw={config.raw[0]}: the shards hold no rows; download again")


def describe(shards: Sequence[Shard], sources: Sequence[Source]) -> list[str]:
    """Says in one line for each source what was found there."""
    lines: list[str] = []
    for index, source in enumerate(sources):
        own = [shard for shard in shards if shard.source == index]
        kinds = Counter(shard.description for shard in own if shard.description)
        what = " / ".join(
            f"{kind} ({count:,} {'file' if count == 1 else 'files'})" for kind, count in kinds.most_common(3)
        )
        about = "" if all(shard.counted for shard in own) else "about "
        lines.append(f"{source.name}: {what}, {about}{sum(sum(shard.rows) for shard in own):,} rows")
    return lines
