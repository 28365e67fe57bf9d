"""Estimates what a curation would do, its duration and its cost. Measures some rows in this process, without Ray."""

import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice
from typing import Any

import cv2

from pipelines.curation.config import CurateConfig
from pipelines.curation.opt_out import OptOutList
from pipelines.curation.pieces import add_nouns, run_steps
from pipelines.curation.raw import Piece, Shard, UnreadableShardError, read_rows
from pipelines.curation.steps import Sample, sample_steps

_EFFICIENCY = 0.7
"""Efficiency of cores with Ray, relative to the measured work. tests/performance/benchmark_curate.py requires it."""


def print_plan(
    config: CurateConfig, shards: Sequence[Shard], pieces: Sequence[Piece], opt_out: OptOutList | None
) -> dict[str, Any]:
    """Prints and returns the plan, JSON-safe."""
    num_rows = sum(piece.num_rows for piece in pieces)
    for index, source in enumerate(config.sources):
        own = [shard for shard in shards if shard.source == index]
        about = "" if all(shard.counted for shard in own) else "about "
        num_of_source = sum(sum(shard.rows) for shard in own)
        print(f"{source.name}: {len(own):,} shards, {about}{num_of_source:,} rows in {source.uri}")
        for description in dict.fromkeys(shard.description for shard in own if shard.description):
            print(f"  {description}")
        for shard in own:
            if shard.error:
                print(f"  {'read in part' if shard.rows else 'left out'}: {shard.error}")
    steps = sample_steps(config, opt_out)
    for step in steps:
        print(f"  {step.name:10} {step.rule}")
    print(f"  {'nouns':10} found by {config.tagger}")
    limit, distance = config.max_images_per_caption, config.near_duplicate_distance
    boilerplate = "off" if limit is None else f"captions of more than {limit} images are dropped"
    near = (
        "" if distance is None else f"; pictures whose hashes differ in at most {distance} of 64 bits from a kept one"
    )
    captions = "with its own captions" if config.captions == "first" else "with the captions of all"
    print(f"  boilerplate {boilerplate}")
    print(f"  duplicates of content or original file: the first is kept, {captions}{near}")
    for source in config.recaptions:
        print(f"  recaptions  {source.name} by {config.join}, from {source.uri}: their nouns are not in the estimate")
    measured = _measure(config, pieces, opt_out)
    core_hours = num_rows * measured["seconds_per_row"] / _EFFICIENCY / 3600
    num_cpus = config.num_workers or os.cpu_count() or 1
    plan = {
        "num_shards": len(shards),
        "num_rows": num_rows,
        "num_pieces": len(pieces),
        "measured": measured,
        "kept_at_most": round(num_rows * measured["kept_share"]),
        "core_hours": core_hours,
        "hours": core_hours / num_cpus,
        "num_cpus": num_cpus,
        "cost": core_hours * config.cost_per_core_hour,
    }
    drops = ", ".join(f"{reason} {share:.1%}" for reason, share in measured["drops"].items()) or "none"
    rate = 1 / measured["seconds_per_row"]
    print(f"measured {measured['num_rows']:,} rows: {rate:,.0f} rows/s on one core; drops: {drops}")
    print(
        f"estimate: {core_hours:,.2f} core-hours, {plan['hours']:,.2f} hours on {num_cpus} CPUs, cost "
        f"{plan['cost']:,.2f} at {config.cost_per_core_hour:g} per core-hour; at most {plan['kept_at_most']:,} samples "
        f"of {num_rows:,} rows, before duplicates"
    )
    print(f"nothing was written to {config.out}")
    return plan


def _measure(config: CurateConfig, pieces: Sequence[Piece], opt_out: OptOutList | None) -> dict[str, Any]:
    """Measures seconds and shares over the rows of some evenly spaced pieces."""
    cv2.setNumThreads(1)
    steps = sample_steps(config, opt_out)
    add_nouns([], config.tagger)  # load it before the measurement
    num_pieces = min(len(pieces), 8)
    chosen = [pieces[len(pieces) * index // num_pieces] for index in range(num_pieces)]
    seconds: defaultdict[str, float] = defaultdict(float)
    drops: Counter[str] = Counter()
    kept: list[Sample] = []
    num_rows = 0
    start = time.perf_counter()
    for piece in chosen:
        try:
            for batch in islice(read_rows(piece), -(-config.plan_rows // num_pieces // 64)):
                for raw in batch[: -(-config.plan_rows // num_pieces)]:
                    sample = Sample(raw=raw)
                    reason = run_steps(sample, steps, seconds)
                    num_rows += 1
                    if reason is None:
                        kept.append(sample)
                    else:
                        drops[reason] += 1
        except UnreadableShardError as error:
            if not config.skip_unreadable_shards:
                raise
            print(error, file=sys.stderr)
    add_nouns(kept, config.tagger)
    elapsed = time.perf_counter() - start
    return {
        "num_rows": num_rows,
        "seconds_per_row": elapsed / max(num_rows, 1),
        "kept_share": len(kept) / max(num_rows, 1),
        "drops": {reason: count / max(num_rows, 1) for reason, count in drops.most_common()},
    }
