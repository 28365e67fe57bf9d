"""`groupvit inspect`: the card, the page, the verification."""

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.cli.main import main
from pipelines.dataset.card import histogram
from pipelines.dataset.format import DatasetInfo, open_dataset, sample_id, write_dataset
from pipelines.dataset.inspect import InspectConfig, inspect_dataset
from tests.support.dataset_folder import make_dataset, make_samples, write_schema_1

HOSTILE = "<script>alert(1)</script> \"><img src=x onerror='alert(2)'> &amp; \x1b[2J\u202e javascript:alert(3)"


class Page(HTMLParser):
    """The page as a browser takes it apart."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.content = path.read_text()
        self.feed(self.content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def inspect(dataset: str, folder: Path, **flags) -> tuple[dict, Page]:
    out = folder / "page.html"
    summary = inspect_dataset(InspectConfig(dataset=dataset, out=str(out), **flags))
    json.dumps(summary)
    return summary, Page(out)


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


def verify(info: DatasetInfo, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The problems that are printed; exit code 2 if there are any."""
    capsys.readouterr()
    out = Path(info.uri).parent / "page.html"
    code = main(["inspect", info.uri, "--verify", "--out", str(out)])
    lines = capsys.readouterr().err.splitlines()
    problems = [line for line in lines if line.startswith(("data/", "sample_id", "dataset.json", "and "))]
    assert code == (2 if problems else 0)
    if problems:
        assert f"{info.uri}: {len(problems)} problems, see above" in lines[-1] or problems[-1].startswith("and ")
    return problems


def test_a_whole_data_set_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = make_dataset(tmp_path / "data", 60)
    assert verify(info, capsys) == []
    assert inspect(info.uri, tmp_path, verify=True)[0]["num_samples_verified"] == 60


def test_a_flipped_byte_in_an_image_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = make_dataset(tmp_path / "data", 60)
    image = list(make_samples(60))[29]["image"]
    path = Path(info.uri) / info.files[1]
    content = bytearray(path.read_bytes())
    content[content.index(image) + 700] ^= 1
    path.write_bytes(content)
    found = verify(info, capsys)
    assert "data/part-000001.parquet row group 0 row 5: image or caption changed" in found[0]
    assert all("row group 0 row 5:" in problem for problem in found)


def test_a_truncated_file_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = make_dataset(tmp_path / "data", 60)
    path = Path(info.uri) / info.files[1]
    path.write_bytes(path.read_bytes()[:-1000])
    [problem] = verify(info, capsys)
    assert problem.startswith("data/part-000001.parquet row groups 0 to 2: cannot be read")


def test_an_unreadable_row_group_does_not_hide_what_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = make_dataset(tmp_path / "data", 24)
    path = Path(info.uri) / info.files[0]
    group = pq.read_metadata(path).row_group(0)
    start = group.column(0).dictionary_page_offset or group.column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 8] = b"\xff" * 8
    image = list(make_samples(24))[20]["image"]
    content[content.index(image) + 700] ^= 1
    path.write_bytes(content)
    found = verify(info, capsys)
    assert found[0].startswith("data/part-000000.parquet row group 0: cannot be read")
    assert found[1].startswith("data/part-000000.parquet row group 2 row 4: image or caption changed")


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = make_dataset(tmp_path / "data", 60)
    (Path(info.uri) / info.files[2]).unlink()
    assert main(["inspect", info.uri, "--verify", "--out", str(tmp_path / "page.html")]) == 2
    assert "1 files of the manifest are missing, first data/part-000002.parquet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 47}, "row group 1 row 2: image is 48×40 pixels, its columns say 47×40"),
        ({"sample_id": "0" * 32}, "row group 1 row 2: image or caption changed"),
        ({"sample_id": "no digits"}, "row group 1 row 2: image or caption changed"),
    ],
)
def test_a_wrong_column_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], change, message) -> None:
    samples = [sample | (change if index == 10 else {}) for index, sample in enumerate(make_samples(20))]
    info = write_dataset(str(tmp_path / "data"), samples, rows_per_group=8)
    [problem] = verify(info, capsys)
    assert message in problem


def test_an_image_that_cannot_be_decoded_is_found_and_shown_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = make_dataset(tmp_path / "data", 10, corrupt=(3,))
    [problem] = verify(info, capsys)
    assert "row group 0 row 3: image: cannot be decoded" in problem
    _, page = inspect(info.uri, tmp_path)
    assert len(page.of("img")) == 9 and page.text.count("cannot be decoded") == 1


def test_other_formats_than_jpeg_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoded = io.BytesIO()
    Image.new("RGB", (30, 20), (200, 10, 10)).save(encoded, "WEBP")
    image = encoded.getvalue()
    sample = {"sample_id": sample_id(image, "red"), "image": image, "captions": ["red"], "nouns": [[]]}
    info = write_dataset(str(tmp_path / "data"), [sample | {"width": 30, "height": 20}])
    assert verify(info, capsys) == []


def test_several_captions_are_counted_shown_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = list(make_samples(10, num_captions=3))
    samples[4] |= {"nouns": [[], [], ["cat"]]}
    info = write_dataset(str(tmp_path / "data"), samples)
    assert verify(info, capsys) == []
    summary, page = inspect(info.uri, tmp_path)
    assert summary["num_captions"] == 30 and summary["num_counted"] == 10
    assert summary["num_without_nouns"] == 4  # 0, 3, 6, 9
    assert summary["charts"]["top nouns, share of all nouns"] == {"dog": 15, "ball": 9, "cat": 1}
    assert sum(summary["charts"]["caption, characters"].values()) == 30
    assert page.text.count("number 7 of 0 again again") == 1 and page.text.count("number 7 of 0") == 3
    samples[3] |= {"nouns": [["dog"]]}
    samples[5] |= {"captions": samples[5]["captions"][::-1]}
    found = verify(write_dataset(str(tmp_path / "other"), samples), capsys)
    assert "row 3: has 3 captions, and nouns for 1" in found[0]
    assert "row 5: image or caption changed" in found[1] and len(found) == 2


def test_a_data_set_of_schema_1_is_counted_shown_and_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = list(make_samples(10))
    old = [{**sample, "caption": sample["captions"][0], "nouns": sample["nouns"][0]} for sample in new]
    info = open_dataset(str(write_schema_1(tmp_path / "old", old, rows_per_group=4)))
    assert verify(info, capsys) == []
    shown = inspect(info.uri, tmp_path)[0]
    assert shown["schema_version"] == 1
    assert shown["charts"] == inspect(write_dataset(str(tmp_path / "new"), new).uri, tmp_path)[0]["charts"]


def test_a_duplicate_row_is_found_in_whichever_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = list(make_samples(30))
    rows = [*samples, samples[4], samples[4], samples[9]]
    info = write_dataset(str(tmp_path / "data"), rows, rows_per_group=8, groups_per_file=2)
    again = sorted(samples[index]["sample_id"] for index in (4, 4, 9))
    assert verify(info, capsys) == [f"sample_id {name}: is in the data set again" for name in again]


def test_files_the_manifest_does_not_name_are_a_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = make_dataset(tmp_path / "data", 20)
    (Path(info.uri) / "data/left-over.parquet").write_bytes(b"")
    summary, _ = inspect(info.uri, tmp_path, verify=True)
    assert summary["orphans"] == ["data/left-over.parquet"]
    assert "1 files in data/ are not in the manifest, first data/left-over.parquet" in capsys.readouterr().err
    assert verify(info, capsys) == []


def test_swapped_files_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = make_dataset(tmp_path / "data", 48)
    paths = [Path(info.uri) / file for file in info.files]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)
    found = verify(info, capsys)
    assert sum("sample ids do not have the digest in the manifest" in problem for problem in found) == 6


def test_a_file_of_another_data_set_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = make_dataset(tmp_path / "data", 40)
    other = make_dataset(tmp_path / "other", 40, seed=1, rows_per_group=4, groups_per_file=20)
    (Path(info.uri) / info.files[0]).write_bytes((Path(other.uri) / other.files[0]).read_bytes())
    found = verify(info, capsys)
    assert "data/part-000000.parquet: has 10 row groups, the manifest counts 3" in found
    assert "data/part-000000.parquet row group 1: has 4 rows, the manifest counts 8" in found


def test_another_digest_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = make_dataset(tmp_path / "data", 20)
    path = Path(info.uri) / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "0" * 32}))
    [problem] = verify(info, capsys)
    assert problem.startswith(f"dataset.json: digest {'0' * 32} is not that of manifest.parquet, {info.digest}")


def test_many_problems_are_counted_and_few_of_them_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [sample | {"height": 41} for sample in make_samples(50)]
    info = write_dataset(str(tmp_path / "data"), samples)
    found = verify(info, capsys)
    assert len(found) == 21 and found[-1] == "and 30 more problems"


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
        ("--out page", "out=page is no page"),
        ("--num-samples -1", "num_samples=-1: give 0 to 500"),
        ("--max-counted-samples 0", "max_counted_samples=0"),
        ("--verfy", "did you mean --verify?"),
        ("", "no dataset.json"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str) -> None:
    assert main(["inspect", str(tmp_path), *flags.split()]) == 2
    assert message in capsys.readouterr().err
