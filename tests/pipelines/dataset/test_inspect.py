"""`groupvit inspect`: the card, the page, the verification."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.cli.main import main
from pipelines.dataset.card import histogram
from pipelines.dataset.format import sample_id, write_dataset
from tests.support.dataset_folder import make_dataset, make_samples
from tests.support.dataset_page import inspect

HOSTILE = "<script>alert(1)</script> \"><img src=x onerror='alert(2)'> &amp; \x1b[2J\u202e javascript:alert(3)"


def test_tells_what_a_data_set_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = make_dataset(tmp_path / "data set", 60)
    summary, page = inspect(info.uri, tmp_path)
    assert (summary["num_samples"], summary["num_row_groups"], summary["num_files"]) == (60, 8, 3)
    assert summary["num_counted"] == 60 and summary["num_without_nouns"] == 20 and summary["num_distinct_nouns"] == 2
    assert summary["charts"] == {
        "source": {"noise": 60},
        "short side, pixels": {"40": 60},
        "width, pixels": {"48": 60},
        "height, pixels": {"40": 60},
        "caption, characters": {"31": 10, "32": 50},
        "top nouns, share of all nouns": {"dog": 40, "ball": 20},
    }
    manifest = pq.read_table(tmp_path / "data set/manifest.parquet")
    assert summary["num_bytes"] == sum(manifest.column("bytes").to_pylist())
    printed = capsys.readouterr().out
    for text in (info.digest, "20 (33.3%)", "caption, characters", "50 (83.3%)"):
        assert text in printed and text in page.text
    assert not page.open, "every element is closed"


def test_the_page_shows_samples_from_end_to_end_and_needs_nothing_else(tmp_path: Path) -> None:
    info = make_dataset(tmp_path / "data", 60)
    _, page = inspect(info.uri, tmp_path, num_samples=6)
    captions = [f"a dog and a ball, number {index} of 0" for index in (5, 15, 25, 35, 45, 55)]
    assert [image["alt"] for image in page.of("img")] == captions and page.text.count("number 5 of") == 1
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in page.of("img"))
    assert len(page.of("h1")) == 1 and len(page.of("table")) == len(page.of("caption")) > 0
    assert all(picture["aria-label"] for picture in page.of("svg"))
    assert not {"script", "link", "a", "iframe"} & {tag for tag, _ in page.elements}
    assert "url(" not in page.content and "http:" not in page.content and "https:" not in page.content


def test_the_default_page_stays_small(tmp_path: Path) -> None:
    """Noise is what JPEG makes most bytes of."""
    images = [sample | {"url": "https://example.org/" + "x" * 200} for sample in make_samples(60, side=256)]
    inspect(write_dataset(str(tmp_path / "data"), images).uri, tmp_path)
    assert (tmp_path / "page.html").stat().st_size < 2_000_000


def test_more_samples_than_there_are_and_none(tmp_path: Path) -> None:
    info = make_dataset(tmp_path / "data", 5)
    assert len(inspect(info.uri, tmp_path, num_samples=60)[1].of("img")) == 5
    assert not inspect(info.uri, tmp_path, num_samples=0)[1].of("img")


def test_texts_from_the_web_stay_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [sample] = make_samples(1)
    texts = {"captions": [HOSTILE], "nouns": [[HOSTILE]], "source": HOSTILE, "url": HOSTILE, "license": HOSTILE}
    sample |= {"sample_id": sample_id(sample["image"], HOSTILE), **texts}
    metadata = {"drops": {HOSTILE: {HOSTILE: 3}}, "sources": {HOSTILE: [HOSTILE]}}
    info = write_dataset(str(tmp_path / "data"), [sample], metadata=metadata)
    _, page = inspect(info.uri, tmp_path, verify=True)
    assert not page.of("script") and len(page.of("img")) == 1 and not page.open
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count("<script>alert(1)</script>") >= 5
    printed = capsys.readouterr().out
    assert "<script>" in printed and "\x1b" not in printed and "\u202e" not in printed + page.content


def test_drops_and_origin_are_shown_without_credentials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = {
        "counts": {"rows_in": 1009, "kept": 9},
        "drops": {"cc3m": {"too_small": 600, "download_failed": 300}, "redcaps": {"too_small": 100}},
        "curation": {"config": {"min_side": 32}, "hash": "abcd"},
        "sources": [{"uri": "https://user:secret@host/list.tsv?X-Amz-Signature=secret", "version": "v7"}],
        "code_version": "0123abcd",
    }
    info = write_dataset(str(tmp_path / "data"), make_samples(9), metadata=metadata)
    summary, page = inspect(info.uri, tmp_path)
    printed = capsys.readouterr().out
    assert summary["drops"] == metadata["drops"]
    for text in ("1,000", "too_small", "600 (66.7%)", "curation.config.min_side", "0123abcd", "v7"):
        assert text in printed, text
    assert "700 (70.0%)" in page.text and "cc3mtoo_small600" in page.text and "rows_in1009" in page.text
    assert "secret" not in printed + page.content + json.dumps(summary)


@pytest.mark.parametrize(
    ("drops", "by_source", "shown"),
    [
        ({"too small": 3}, {"all sources": {"too small": 3}}, "dropped3"),
        ({"cc3m": {}, "yfcc": {"too small": 3}}, {"yfcc": {"too small": 3}}, "dropped3"),
        ({"cc3m": {}}, {}, "dropped0"),
    ],
)
def test_drops_by_reason_alone_and_none(tmp_path: Path, drops, by_source, shown) -> None:
    info = write_dataset(str(tmp_path / "data"), make_samples(2), metadata={"drops": drops})
    summary, page = inspect(info.uri, tmp_path)
    assert summary["drops"] == by_source and shown in page.text


def test_a_large_data_set_is_counted_in_part_and_says_so(tmp_path: Path) -> None:
    info = make_dataset(tmp_path / "data", 64)
    summary, page = inspect(info.uri, tmp_path, max_counted_samples=24)
    assert summary["num_counted"] == 24 and sum(summary["charts"]["source"].values()) == 24
    assert "24 samples of evenly spaced row groups" in page.text


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([7, 7, 9], {"7": 2, "9": 1}),
        (range(1000), {f"{100 * index}–{100 * index + 99}": 100 for index in range(10)}),
        ([*range(100)] * 10 + [10**6], {f"{10 * index}–{10 * index + 9}": 100 for index in range(10)} | {"≥ 100": 1}),
    ],
)
def test_histograms(values, bars) -> None:
    assert dict(histogram("", np.array(values)).bars) == bars


def test_histograms_count_everything_in_few_bars() -> None:
    rng = np.random.default_rng(0)
    for scale in (1, 30, 500, 10**5):
        values = rng.lognormal(2, 1.5, size=500) * scale
        bars = histogram("", values.astype(np.int64)).bars
        assert sum(count for _, count in bars) == 500 and len(bars) <= 13


def test_a_damaged_data_set_that_is_not_verified_fails_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = make_dataset(tmp_path / "data", 20)
    path = Path(info.uri) / info.files[0]
    path.write_bytes(path.read_bytes()[:-1000])
    assert main(["inspect", info.uri, "--out", str(tmp_path / "page.html")]) == 2
    error = capsys.readouterr().err
    assert info.files[0] in error and "--verify" in error and error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--out page", "out=page is not a page"),
        ("--num-samples -1", "num_samples=-1: give 0 to 500"),
        ("--max-counted-samples 0", "max_counted_samples=0"),
        ("--verfy", "did you mean --verify?"),
        ("", "no dataset.json"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str) -> None:
    assert main(["inspect", str(tmp_path), *flags.split()]) == 2
    assert message in capsys.readouterr().err
