"""Curation with recaptions on Ray: the samples stay, and every recaption is accounted for."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipelines import storage
from pipelines.curation.config import CurateConfig
from pipelines.curation.curate import curate
from pipelines.curation.run import run_pieces
from pipelines.dataset.format import open_dataset
from pipelines.dataset.verification import verify
from tests.support.image_files import encoded
from tests.support.raw_shards import good_rows, picture, raw_row, write_shards

NUM_CPUS = 2
NUM_GOOD = 40
SENTENCE = "A red bus stands in a street, and two people wait beside it."

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # each curates several times


def url(number: int) -> str:
    return f"http://example.org/{number}.jpg"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """40 images; 100 and 101 are copies of 5 and 6, 102 is near 7, 103 has boilerplate for a caption, as 12 others."""
    folder = tmp_path_factory.mktemp("raw")
    rows = good_rows(range(NUM_GOOD))
    rows += [raw_row(100, rows[5]["jpg"]), raw_row(101, rows[6]["jpg"])]
    rows += [raw_row(102, encoded(picture(7).resize((120, 100)), quality=70))]
    rows += [raw_row(103 + n, encoded(picture(200 + n), quality=85), "click here to buy") for n in range(12)]
    said: list[tuple[str | None, Any]] = [(url(n), f"a wooden table of picture {n}") for n in range(30)]
    said += [
        (
            url(3).replace("http://example.org", "https://EXAMPLE.org"),
            [" ".join([SENTENCE] * 9), "a wooden table of picture 3"],
        ),
        (url(101), ["a copy's caption", "a wooden table of picture 6"]),
        (url(102), "of a picture that is dropped"),
        (url(103), "of a picture with boilerplate"),
        (url(4), "собака и мяч"),
        (url(8), "ein Hund und ein Ball"),
        (None, "of nothing"),
        (url(9999), "of a picture that is not there"),
        (url(9), [f"one more caption, number {n}" for n in range(12)]),
        *((url(n), "this is boilerplate") for n in range(10, 22)),
    ]
    table = [{"url": key, "re_caption": texts if isinstance(texts, list) else [texts]} for key, texts in said]
    recaptions = folder / "recaptions"
    recaptions.mkdir()
    pq.write_table(pa.Table.from_pylist(table[:20]), recaptions / "a.parquet")
    (recaptions / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table[20:]))
    (folder / "blip.csv").write_text(
        f"url,caption\n{url(3)},click here to buy\n{url(39)},a dog and the ball number 39\n"
    )
    return {"raw": write_shards(folder / "raw", rows, 20), "llava": recaptions, "blip": folder / "blip.csv"}


def config_of(places: dict[str, Path], out: Path, *names: str, **fields: Any) -> CurateConfig:
    return CurateConfig(
        raw=(str(places["raw"]),),
        out=str(out),
        captions_from=tuple(str(places[name]) for name in names),
        origins=names,
        join="url" if names else None,
        **{"rows_per_piece": 16, "rows_per_group": 8, "groups_per_file": 2, **fields},
    )


def rows_of(out: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(out / name) for name in open_dataset(str(out)).files]
    return [row for table in tables for row in table.to_pylist()]


@pytest.fixture(scope="module")
def curated(cluster: None, places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("curated")
    plain = curate(config_of(places, folder / "plain"))
    both = curate(config_of(places, folder / "both", "llava", "blip"))
    return {"folder": folder, "plain": plain, "both": both}


def test_the_samples_stay_as_they_are(curated: dict[str, Any]) -> None:
    before, after = (rows_of(curated["folder"] / name) for name in ("plain", "both"))
    for old, new in zip(before, after, strict=True):
        number = len(old["captions"])
        assert new.pop("caption_origins")[:number] == ["original"] * number
        new |= {name: new[name][:number] for name in ("captions", "nouns")}
        assert new == old
    for name in ("num_samples", "drops", "num_captions", "caption_drops", "num_captions_in"):
        assert curated["plain"][name] == curated["both"][name], name
    plain, both = (open_dataset(str(curated["folder"] / name)) for name in ("plain", "both"))
    assert (plain.metadata["schema_version"], both.metadata["schema_version"]) == (2, 3)
    assert plain.caption_origins == ("original",) and both.caption_origins == ("original", "llava", "blip")
    assert plain.digest != both.digest and plain.rows.tolist() == both.rows.tolist()
    assert verify(both).problems == () and verify(plain).problems == ()


def test_every_recaption_is_kept_or_counted(curated: dict[str, Any]) -> None:
    by_url = {row["url"]: row for row in rows_of(curated["folder"] / "both")}

    def said(number: int, name: str) -> list[str]:
        row = by_url[url(number)]
        assert len(row["captions"]) == len(row["caption_origins"]) == len(row["nouns"])
        return [text for text, origin in zip(row["captions"], row["caption_origins"], strict=True) if origin == name]

    assert said(0, "llava") == ["a wooden table of picture 0"] and said(30, "llava") == []
    assert said(3, "llava") == ["a wooden table of picture 3", " ".join([SENTENCE] * 5)]
    assert said(6, "llava") == ["a wooden table of picture 6", "a copy's caption"]  # what the copy brings comes last
    assert said(6, "original") == ["a dog and the ball number 6", "a dog and the ball number 101"]
    assert said(4, "llava") == ["a wooden table of picture 4"] and "ein Hund und ein Ball" in said(8, "llava")
    assert said(9, "llava")[:2] == ["a wooden table of picture 9", "one more caption, number 0"]
    assert len(said(9, "llava")) == 10
    # Texts of two origins are told apart: neither repetitions nor boilerplate of each other.
    assert said(3, "blip") == ["click here to buy"] and said(39, "blip") == ["a dog and the ball number 39"]
    row = by_url[url(3)]
    assert row["nouns"][1] == ["table", "picture"] and row["nouns"][2][:2] == ["bus", "street"]

    llava, blip = (curated["both"]["recaptions"][name] for name in ("llava", "blip"))
    assert llava["num_rows"] == 30 + 21 and llava["num_without_key"] == 1 and llava["num_cut"] == 1
    assert llava["num_captions_in"] == 30 + 2 + 2 + 5 + 12 + 12 and llava["caption_drops"] == {
        "caption_other_alphabet": 1
    }
    assert llava["joined_drops"] == {
        "caption_boilerplate": 12,
        "caption_repeated": 2,  # of 3, and of the copy of 6
        "caption_over_limit": 3,  # of 9
        "image_dropped": 2,  # 102 and 103
    }
    assert llava["num_joined"] == llava["num_captions"] + 19 and llava["num_samples"] == 30
    assert llava["num_joined"] == llava["num_captions_in"] - 1 - 1  # one is of no alphabet of ours, one of no picture
    assert (blip["num_samples"], blip["num_captions"], blip["joined_drops"]) == (2, 2, {})
    kept = [origin for row in by_url.values() for origin in row["caption_origins"]]
    assert kept.count("llava") == llava["num_captions"] and kept.count("blip") == 2
    assert open_dataset(str(curated["folder"] / "both")).metadata["recaptions"]["llava"] == llava


def test_an_interrupted_curation_by_other_workers_makes_the_same_files(
    curated: dict[str, Any], places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops when recaptions and some pieces are done, and goes on with one worker."""
    config = config_of(places, tmp_path / "out", "llava", "blip")

    def stop(pieces: Any, config: CurateConfig, work: str) -> Any:
        yield from run_pieces(pieces[:2], config, work)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.curation.run.run_pieces", stop)
        with pytest.raises(KeyboardInterrupt):
            curate(config)
    assert storage.list_files(f"{config.out}/_curation/recaptions")
    with pytest.raises(ValueError, match="was started with context_length=77 instead of 20"):
        curate(dataclasses.replace(config, context_length=20))
    summary = curate(dataclasses.replace(config, num_workers=1))
    assert summary["digest"] == curated["both"]["digest"] and summary["recaptions"] == curated["both"]["recaptions"]
    assert rows_of(tmp_path / "out") == rows_of(curated["folder"] / "both")
    assert curate(config)["recaptions"] == summary["recaptions"]  # nothing to do
    with pytest.raises(ValueError, match="already holds a data set"):
        curate(dataclasses.replace(config, origins=("blip", "llava")))


def test_all_of_it_may_lie_in_an_object_store(curated: dict[str, Any], places: dict[str, Path], bucket: str) -> None:
    ray.shutdown()  # its processes keep the environment they began with
    there = {name: f"{bucket}/{path.name}" for name, path in places.items()}
    for path in places.values():
        for file in path.rglob("*.*") if path.is_dir() else [path]:
            storage.write_bytes(f"{bucket}/{file.relative_to(path.parent)}", file.read_bytes())
    try:
        summary = curate(
            dataclasses.replace(
                config_of(places, Path("x"), "llava", "blip"),
                raw=(there["raw"],),
                captions_from=(there["llava"], there["blip"]),
                out=f"{bucket}/out",
            )
        )
    finally:
        ray.init(address="local", num_cpus=NUM_CPUS, include_dashboard=False, log_to_driver=False)
    assert summary["digest"] == curated["both"]["digest"]
    for name, expected in curated["both"]["recaptions"].items():
        found = summary["recaptions"][name]
        assert found["uri"] == there[name]
        assert {**found, "uri": "", "version": ""} == {**expected, "uri": "", "version": ""}  # of the files there
    assert verify(open_dataset(f"{bucket}/out")).problems == ()
