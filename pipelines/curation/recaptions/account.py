"""The files of recaptions as pieces of work, and what became of their captions."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.curation.config import CurateConfig
from pipelines.curation.raw import Shard
from pipelines.curation.recaptions.files import find_files
from pipelines.curation.recaptions.pieces import RecaptionPiece, RecaptionReport, read_recaption_report
from pipelines.provenance import redact


def recaption_pieces(config: CurateConfig, shards: Sequence[Shard], first: int) -> list[RecaptionPiece]:
    """Looks at the files of recaptions. Raises ValueError, in one line, if one cannot be used.

    Args:
        first: Number of the first piece.
    """
    if config.join is None:
        return []
    passes = {shard.uri.rpartition("/")[0] for shard in shards}
    if config.join == "key" and len(passes) > 1:
        raise ValueError(
            f"join=key: {config.raw[0]} holds {len(passes)} passes of a download, and each counts its keys anew; give "
            "--join url or sha256"
        )
    files = [
        file
        for origin, source in enumerate(config.recaptions, start=1)
        for file in find_files(source.uri, origin, config.join, config.recaption_columns)
    ]
    return [RecaptionPiece(number=number, file=file) for number, file in enumerate(files, start=first)]


def versions_of(config: CurateConfig, pieces: Sequence[RecaptionPiece]) -> dict[str, Any]:
    """Identifies the recaptions by origin: a digest of the names, sizes and times of their files."""
    versions: dict[str, Any] = {}
    for origin, source in enumerate(config.recaptions, start=1):
        files = [[piece.file.uri, piece.file.version] for piece in pieces if piece.file.origin == origin]
        version = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:32]
        versions[source.name] = {"uri": redact(source.uri), "num_files": len(files), "version": version}
    return versions


def summaries(
    config: CurateConfig,
    pieces: Sequence[RecaptionPiece],
    records: Sequence[Mapping[str, Any]],
    versions: Mapping[str, Any],
    work: str,
) -> dict[str, dict[str, Any]]:
    """Returns the counts of each origin, JSON-safe.

    Args:
        records: Those of the files of the data set.
        versions: From `versions_of`.
    """
    result: dict[str, dict[str, Any]] = {}
    for origin, name in enumerate(config.origins, start=1):
        report = RecaptionReport()
        for piece in pieces:
            if piece.file.origin == origin:
                report.add(read_recaption_report(work, piece.number))
        drops: Counter[str] = Counter()
        for record in records:
            drops.update(record.get("recaption_drops", {}).get(name, {}))
        num_kept = sum(record.get("recaptions_kept", {}).get(name, 0) for record in records)
        result[name] = {
            **versions[name],
            "join": config.join,
            "num_rows": report.num_rows,
            "num_without_key": report.num_without_key,
            "num_captions_in": report.num_captions,
            "num_cut": report.num_cut,
            "caption_drops": dict(report.drops.most_common()),
            "num_samples": sum(record.get("recaptioned", {}).get(name, 0) for record in records),
            "num_joined": num_kept + drops.total(),
            "num_captions": num_kept,
            "joined_drops": dict(drops.most_common()),
        }
    return result
