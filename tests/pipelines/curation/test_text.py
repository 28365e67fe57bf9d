import pytest

from pipelines.curation.text import clean_caption, latin_share, letter_share


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  A dog\n and\ta   ball ", "A dog and a ball"),
        ("Fish &amp;amp; chips &lt;3", "Fish & chips <3"),
        ("the caf\u00c3\u00a9 at night", "the café at night"),
        ("<PERSON> and < person > dance", "person and person dance"),
        ('a <b>red</b> <a href="x">bus</a>', "a red bus"),
        ("a < b and c > d", "a < b and c > d"),
        ("\x00\x07bell", "bell"),
        (" \n ", ""),
    ],
)
def test_cleans(raw, clean):
    assert clean_caption(raw) == clean
    assert clean_caption(clean) == clean


def test_shares():
    assert letter_share("a dog") == 1 and letter_share("IMG_2034.jpg") == 6 / 12 and letter_share("12 34") == 0
    assert letter_share("é1") == 0.5 and letter_share("किताब") == 1 and letter_share("") == 0
    assert latin_share("a dog") == 1 and latin_share("Ærø café") == 1 and latin_share("123") == 1
    assert latin_share("собака") == 0 and latin_share("犬 ab") == 2 / 3
