from pathlib import Path

import pytest

from pipelines.local.folder_names import check_folder_name, split_name


@pytest.mark.parametrize("name", ["debug", "näme", "a b", "50%41?#&", "n" * 255, "ü" * 127, "実験-1"])
def test_a_name_that_is_accepted_makes_a_folder(tmp_path: Path, name: str) -> None:
    check_folder_name("run", name)
    (tmp_path / name).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "run='' is not a folder name"),
        ("a/b", "run='a/b' is not a folder name"),
        ("..", "not a folder name"),
        ("a\nb", "run='a.nb' has a character that cannot be printed"),
        ("caf\udce9", "run='caf.udce9' has a character that cannot be printed"),
        ("n" * 256, "run=nnnnnnnnnnnnnnnnnnnn... is 256 bytes long"),
        ("ü" * 128, "is 256 bytes long in UTF-8, .* give at most 255"),
        ("other", "run='other' is the name of something else"),
    ],
)
def test_other_names_are_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_folder_name("run", name, reserved=("other",))
    assert "\n" not in str(caught.value)


def test_a_folder_that_exists_has_no_name_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_name("year=2020/train") == ("year", "2020/train")
    (tmp_path / "year=2020" / "train").mkdir(parents=True)
    assert split_name("year=2020/train") == (None, "year=2020/train")
    assert split_name("few=year=2020/train") == ("few", "year=2020/train")
    assert split_name("s3://bucket/year=2020") == (None, "s3://bucket/year=2020")
    assert split_name("./year=2021") == (None, "./year=2021")
    assert split_name("few=s3://bucket/x") == ("few", "s3://bucket/x")
