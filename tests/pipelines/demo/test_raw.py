"""Raw shards of drawn scenes: curated, they give the samples that the demo writes as a data set."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.curation.config import CurateConfig
from pipelines.curation.curate import curate
from pipelines.dataset.format import open_dataset
from pipelines.demo.generate import DemoDataConfig, demo_data


@pytest.mark.slow
def test_curated_raw_shards_hold_the_samples_of_the_data_set(tmp_path: Path) -> None:
    def make(name: str, *, raw: bool) -> dict:
        config = DemoDataConfig(
            out=str(tmp_path / name),
            raw=raw,
            num_training_scenes=120,
            num_calibration_scenes=2,
            num_validation_scenes=2,
            num_processes=1,
        )
        return demo_data("shapes", config)

    written, raw = make("written", raw=False), make("raw", raw=True)
    assert make("raw", raw=True) == raw  # kept
    out = str(tmp_path / "curated")
    curate(CurateConfig(raw=(raw["raw"],), out=out, max_images_per_caption=None, near_duplicate_distance=None))
    tables = [pq.read_table(Path(folder) / "data") for folder in (written["train"], out)]
    ids = [table.column("sample_id").to_pylist() for table in tables]
    assert sorted(ids[0]) == sorted(ids[1]) and ids[0] != ids[1]
    nouns = [
        dict(zip(names, table.column("nouns").to_pylist(), strict=True))
        for names, table in zip(ids, tables, strict=True)
    ]
    same = sum(set(found[0]) >= set(nouns[0][name][0]) for name, found in nouns[1].items())
    assert same > 0.9 * open_dataset(out).num_samples  # a tagger errs now and then
