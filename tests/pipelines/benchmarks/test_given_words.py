"""Words given for the classes of a benchmark, in place of its own."""

from pathlib import Path

import pytest

from pipelines.benchmarks.given_words import changed_words, with_words
from pipelines.benchmarks.voc import open_voc21
from tests.support.drawn_photos import drawn_photos
from tests.support.miniatures import write_voc


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc"), drawn_photos(1))


def test_only_the_given_classes_change(root: Path) -> None:
    dataset = open_voc21(str(root))
    given = ("person=man, woman,  small child", "diningtable=table,desk")
    changed = with_words(dataset, given)
    expected = dict(zip(dataset.classes[1:], dataset.words, strict=True))
    expected |= {"person": ("man", "woman", "small child"), "diningtable": ("table", "desk")}
    assert dict(zip(changed.classes[1:], changed.words, strict=True)) == expected
    assert changed.classes == dataset.classes and changed.digest == dataset.digest
    assert changed_words(changed, given) == {name: expected[name] for name in ("diningtable", "person")}
    assert with_words(dataset, ()) == dataset and changed_words(dataset, ()) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["persn=man"], "'persn' is not a class, which are aeroplane, bicycle, .*, person, .*tvmonitor"),
        (["background=sky"], "'background' is not a class"),
        (["person"], 'names no words: give a class and its words, like "person=man,woman"'),
        (["person=, ,"], "names no words"),
        (["=man"], "'' is not a class"),
        (["person=man", "person=woman"], "person is given twice: give all its words at once"),
        (["person=man,Man"], "has a word twice"),
        (["person=man,cat"], "'cat' is for cat and for person|'cat' is for person and for cat"),
        (["person=man,background"], "has the word background"),
        ([f"person={'m' * 201}"], "has 201 characters"),
    ],
)
def test_what_the_user_got_wrong(given: list[str], message: str, root: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        with_words(open_voc21(str(root)), given)
    assert "\n" not in str(caught.value)
