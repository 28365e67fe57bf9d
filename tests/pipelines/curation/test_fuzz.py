"""Damaged images and shards: nothing crashes, everything is accounted for."""

import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from pipelines.curation.config import CurateConfig, Source
from pipelines.curation.pieces import Report, curate_piece, run_steps
from pipelines.curation.raw import UnreadableShardError, pieces_of, read_rows, read_shards
from pipelines.curation.steps import Sample, sample_steps
from tests.support.fuzzing import mutated
from tests.support.image_files import encoded
from tests.support.raw_shards import good_rows, picture, raw_row, write_shards

NUM_IMAGES, NUM_SHARDS = 10_000, 1_000


def seed_images():
    small = [picture(seed, 40, 32) for seed in range(4)]
    exif = small[0].getexif()
    exif[274] = 6
    yield from (encoded(small[0], quality=85), encoded(small[1], quality=85, progressive=True, exif=exif))
    yield encoded(small[2].convert("CMYK"), quality=85)
    yield encoded(small[3].convert("L"), quality=85)
    yield from (encoded(small[0], "PNG"), encoded(small[1].convert("P"), "PNG", transparency=3))
    yield from (encoded(small[2].convert("RGBA"), "PNG"), encoded(small[3].convert("I;16"), "PNG"))
    yield from (encoded(small[0], "WEBP"), encoded(small[1], "WEBP", lossless=True))
    yield from (encoded(small[2], "GIF"), encoded(small[3], "GIF", save_all=True, append_images=small[:2]))
    yield from (encoded(small[0], "BMP"), encoded(small[1], "TIFF", compression="tiff_lzw"))


@pytest.mark.slow
def test_every_damaged_image_is_kept_or_has_a_reason():
    seeds, rng = list(seed_images()), random.Random(0)
    config = CurateConfig(raw=("x",), out="y", min_side=16, max_pixels=2**18)
    steps, drops, seconds = sample_steps(config, None), Counter(), defaultdict(float)
    for number in range(NUM_IMAGES):
        data = mutated(rng.choice(seeds), rng)
        sample = Sample(raw=raw_row(number, data or b"x"))
        reason = run_steps(sample, steps, seconds)
        drops[reason] += 1
        assert reason is not None or (sample.image and min(sample.width, sample.height) >= 16)
    assert drops.total() == NUM_IMAGES
    reasons = {"image_damaged", "image_unidentified", "image_too_many_pixels", "image_animated", None}
    assert reasons <= set(drops) <= reasons | {"image_too_small", "image_aspect_ratio", "image_mode"}
    assert NUM_IMAGES // 10 < drops[None] < NUM_IMAGES // 2 * 1.5, drops


@pytest.mark.slow
def test_every_row_of_damaged_shards_is_accounted_for(tmp_path):
    write_shards(tmp_path / "good", good_rows(range(150), width=70, height=64), 150)
    original, rng = (tmp_path / "good/00000.parquet").read_bytes(), random.Random(0)
    folder = tmp_path / "raw"
    folder.mkdir()
    config = CurateConfig(raw=(str(folder),), out="y", skip_unreadable_shards=True)
    steps = [step for step in sample_steps(config, None) if step.name == "download"]  # shards are looked at here
    outcomes = Counter()
    for _ in range(NUM_SHARDS):
        # Half of the damage hits the footer, which is what a reader believes.
        data = mutated(original, rng) if rng.random() < 0.5 else original[:-2000] + mutated(original[-2000:], rng)
        (folder / "00000.parquet").write_bytes(data)
        (shard,) = read_shards([Source(name="x", uri=str(folder))])
        if shard.error:
            assert "\n" not in shard.error and str(folder) in shard.error
            outcomes["footer"] += 1
            continue
        for piece in pieces_of([shard], 50):
            num_read = 0
            drops = Counter()
            try:
                for batch in read_rows(piece):
                    num_read += len(batch)
                    drops.update(run_steps(Sample(raw=raw), steps, defaultdict(float)) for raw in batch)
            except UnreadableShardError:
                outcomes["rows"] += 1
            else:
                outcomes["whole" if num_read == piece.num_rows else "count"] += 1
            assert drops.total() == num_read
    assert outcomes["footer"] > 100 and outcomes["rows"] > 20 and outcomes["whole"] > 100, outcomes


def test_a_shard_damaged_in_the_middle_is_an_error_or_counted(tmp_path):
    write_shards(tmp_path / "raw", good_rows(range(300)), 300)
    path = tmp_path / "raw/00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = np.random.default_rng(0).bytes(2000)
    path.write_bytes(data)
    shards = read_shards([Source(name="x", uri=str(tmp_path / "raw"))])
    (piece,) = pieces_of(shards, 1000)
    config = CurateConfig(raw=("x",), out="y", skip_unreadable_shards=True)
    report = curate_piece(piece, config, sample_steps(config, None), str(tmp_path / "work"))
    assert isinstance(report, Report) and report.num_rows == 300
    assert report.drops.total() < 300
