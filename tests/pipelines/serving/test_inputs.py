"""Files, folders and patterns that users give `groupvit segment`."""

from pathlib import Path

import pytest

from pipelines import storage
from pipelines.serving.inputs import find_pictures, refuse_same_names

NAMES = ("a.jpg", "b.PNG", "notes.txt", "sub/c.jpg", "sub/deep/d.webp", ".hidden/e.jpg", "._a.jpg", "out/f/overlay.png")


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder with these files; nothing reads what is in them."""
    folder = f"{request.getfixturevalue('bucket')}/photos" if request.param == "s3" else str(tmp_path / "photos")
    for name in NAMES:
        storage.write_bytes(storage.join(folder, name), b"x")
    return folder


def names(given: list[str], folder: str) -> list[str]:
    return [picture.name for picture in find_pictures(given, f"{folder}/out")]


def test_a_folder_stands_for_the_images_in_it_and_below(folder: str) -> None:
    assert names([folder], folder) == ["a.jpg", "b.PNG", "sub/c.jpg", "sub/deep/d.webp"]
    assert names([f"{folder}/sub/"], folder) == ["c.jpg", "deep/d.webp"]
    pictures = find_pictures([folder], f"{folder}/out")
    assert [picture.uri for picture in pictures] == [storage.join(folder, picture.name) for picture in pictures]
    assert pictures[-1].stem == "sub/deep/d"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", ["a.jpg", "b.PNG", "notes.txt"]),
        ("*.jpg", ["a.jpg"]),
        ("**/*.jpg", ["a.jpg", "sub/c.jpg"]),
        ("sub/**", ["c.jpg", "deep/d.webp"]),
        ("s?b/[a-c].jpg", ["s?b/c.jpg"]),
        ("**/deep/*", ["sub/deep/d.webp"]),
    ],
)
def test_a_pattern_stands_for_the_files_that_it_matches(pattern: str, found: list[str], folder: str) -> None:
    if pattern == "sub/**":  # names begin where the pattern does
        assert names([f"{folder}/{pattern}"], folder) == found
        return
    assert names([f"{folder}/{pattern}"], folder) == [name.replace("s?b", "sub") for name in found]


def test_files_are_kept_in_their_order_and_found_once(folder: str) -> None:
    given = [f"{folder}/sub/c.jpg", f"{folder}/missing.jpg", f"{folder}/*.jpg", folder]
    uris = [picture.uri for picture in find_pictures(given, f"{folder}/out")]
    expected = ["sub/c.jpg", "missing.jpg", "a.jpg", "b.PNG", "sub/deep/d.webp"]
    assert uris == [f"{folder}/{name}" for name in expected]
    assert names(given, folder)[:2] == ["c.jpg", "missing.jpg"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("*.gif", r"images=.*\*\.gif matches no file"),
        ("*/../*", r"leads out of its folders by \.\."),
        ("empty", "is a folder without images: give image files"),
        ("out/**", "has only files of out="),
    ],
)
def test_what_stands_for_no_image_is_refused(given: str, message: str, folder: str) -> None:
    storage.write_bytes(storage.join(folder, "empty/notes.txt"), b"x")
    with pytest.raises(ValueError, match=message) as caught:
        find_pictures([f"{folder}/{given}"], f"{folder}/out")
    assert "\n" not in str(caught.value)


def test_the_name_of_a_file_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "photo[1].jpg").write_bytes(b"x")
    (tmp_path / "photo1.jpg").write_bytes(b"x")
    assert [picture.name for picture in find_pictures([f"{tmp_path}/photo[1].jpg"], "out")] == ["photo[1].jpg"]


def test_equal_names_are_told_apart_by_their_endings_only_if_these_are_kept(tmp_path: Path) -> None:
    for name in ("one/a.jpg", "two/A.jpeg"):
        storage.write_bytes(f"{tmp_path}/{name}", b"x")
    pictures = find_pictures([f"{tmp_path}/one/a.jpg", f"{tmp_path}/two/A.jpeg"], "out")
    refuse_same_names(pictures, with_ending=True, kind="coco-rle")
    with pytest.raises(ValueError, match=r"one/a\.jpg and .*two/A\.jpeg would have the same name in format=geojson"):
        refuse_same_names(pictures, with_ending=False, kind="geojson")
