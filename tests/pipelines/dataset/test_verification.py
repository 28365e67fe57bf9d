"""`groupvit inspect --verify`: each kind of damage is found, and named."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.cli.main import main
from pipelines.dataset.format import DatasetInfo, open_dataset, sample_id, write_dataset
from tests.support.dataset_folder import make_dataset, make_samples, write_schema_1
from tests.support.dataset_page import inspect


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
