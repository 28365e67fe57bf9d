"""Training from raw shards as they are."""

import collections
import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.format import sample_id
from pipelines.experiments.catalogue import debug
from pipelines.experiments.config import DataConfig, IngestConfig
from pipelines.ingest.plan import plan_ingest
from pipelines.ingest.slices import load_slices
from pipelines.ingest.uncurated import open_source, read_raw_row_group, with_captions
from pipelines.training.pretrain import open_datasets
from tests.support.dataset_folder import make_dataset
from tests.support.raw_shards import SCHEMA, good_rows, raw_row, write_shards


@pytest.fixture
def raw(tmp_path):
    """130 images that arrived, in two shards; 20 that did not, and one without a caption."""
    rows = good_rows(range(130))
    rows[0]["caption"] = "a  dog &amp; a ball"
    rows += [raw_row(1000 + number, None) for number in range(20)]
    rows.append({**good_rows([2000])[0], "caption": None})
    order = np.random.default_rng(0).permutation(len(rows))
    return rows, write_shards(tmp_path / "raw", [rows[index] for index in order], 120)


def make_config(*sources, **training):
    base = debug()
    return dataclasses.replace(
        base,
        data=DataConfig(sources=tuple(map(str, sources))),
        ingest=IngestConfig(slice_size=13, window_size=130, augmentation="crop_flip"),
        training=dataclasses.replace(base.training, global_batch_size=26, **training),
    )


def test_an_epoch_has_what_arrived_once_with_nouns_mined(raw):
    rows, folder = raw
    config = make_config(folder)
    pieces = load_slices(plan_ingest(config), 0, 10)
    seen = collections.Counter(name for piece in pieces for name in piece["sample_id"])
    captions = ["a dog & a ball", *(row["caption"] for row in rows[1:130])]
    expected = {sample_id(row["jpg"], caption) for row, caption in zip(rows, captions, strict=False)}
    assert set(seen) == expected and set(seen.values()) == {1}
    assert not any(piece["substituted"].any() for piece in pieces)
    # The captions name a dog and a ball: prompts with these nouns, not the caption again.
    assert len(np.unique(np.concatenate([piece["prompt_keys"] for piece in pieces]))) <= 4


def test_captions_may_be_lists_and_missing_ones_are_not_words(tmp_path):
    images = [row["jpg"] for row in good_rows(range(5))]
    said = [["a dog", None, "a  cat"], [], None, [None], ["a bird"]]
    columns = {"jpg": images, "status": ["success"] * 5}

    def read(name, **captions):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(columns | captions), tmp_path / name / "00000.parquet")
        info = open_source(str(tmp_path / name))
        with pq.ParquetFile(tmp_path / name / "00000.parquet") as file:
            return info.num_samples, with_captions(read_raw_row_group(file, 0).to_pylist())

    for name, column in (("list", "caption"), ("beside", "captions")):
        num_samples, rows = read(name, **{column: pa.array(said, pa.list_(pa.string()))})
        assert num_samples == 2 and [row["captions"] for row in rows] == [["a dog", "a cat"], ["a bird"]]
        assert rows[0]["sample_id"] == sample_id(images[0], "a dog", "a cat")
    num_samples, rows = read("both", captions=pa.array(said), caption=["x", "y", "z", None, "w"])
    assert [row["captions"] for row in rows] == [["a dog", "a cat"], ["y"], ["z"], ["a bird"]] and num_samples == 4
    # What pandas writes where captions are missing.
    with pytest.raises(ValueError, match="no image of its raw shards arrived"):
        read("floats", caption=[float("nan")] * 4 + [1.5])
    with pytest.raises(ValueError, match=r"column caption is struct<en: string>; it must hold a text or a list"):
        read("structs", caption=[{"en": "a dog"}] * 5)


def test_a_run_draws_from_lists_of_captions(tmp_path):
    rows = [{**row, "captions": ["a red dog", "a blue ball"]} for row in good_rows(range(26))]
    schema = SCHEMA.append(pa.field("captions", pa.list_(pa.string())))
    config = make_config(write_shards(tmp_path, rows, 20, schema))
    config = dataclasses.replace(config, ingest=dataclasses.replace(config.ingest, window_size=26))
    drawn = collections.defaultdict(set)
    for piece in load_slices(plan_ingest(config), 0, 2) + load_slices(plan_ingest(config), 2, 4):
        for name, texts in zip(piece["sample_id"], piece["token_ids"], strict=True):
            drawn[name].add(texts[0].tobytes())
    assert len(drawn) == 26 and set(map(len, drawn.values())) == {2} and len(set().union(*drawn.values())) == 2


def test_it_is_said_and_can_be_mixed_with_a_data_set(raw, tmp_path, capsys):
    _, folder = raw
    make_dataset(tmp_path / "dataset", 30)
    infos = open_datasets(make_config(folder, tmp_path / "dataset"))
    assert [(info.num_samples, info.is_raw) for info in infos] == [(130, True), (30, False)]
    assert "raw shards, read as they are: 130 images" in capsys.readouterr().err
    assert infos[0].digest == open_source(str(folder)).digest != infos[1].digest


def test_what_cannot_be_read_is_one_line(raw, tmp_path):
    with pytest.raises(ValueError, match="no image of its raw shards arrived"):
        open_source(str(write_shards(tmp_path / "none", [raw_row(1, None)], 10)))
    (tmp_path / "half").mkdir()
    (tmp_path / "half/00000.parquet").write_bytes((raw[1] / "00000.parquet").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"00000\.parquet: is corrupted or incomplete"):
        open_source(str(tmp_path / "half"))
    (tmp_path / "half/download.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        open_source(str(tmp_path / "half"))
    with pytest.raises(ValueError, match=r"no dataset\.json"):
        open_source(str(tmp_path / "nowhere"))
