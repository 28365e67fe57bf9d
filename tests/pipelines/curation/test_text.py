import pytest

from pipelines.curation.text import clean_caption, is_missing, is_name, latin_share, letter_share


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


def test_what_pandas_reads_as_missing_is_missing():
    # https://pandas.pydata.org/docs/reference/api/pandas.read_csv.html, na_values
    missing = ["#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"]
    missing += ["NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
    assert all(map(is_missing, missing))
    for text in ("Nan", "Nan's kitchen", "nan bread", "Nonet", "none", "a null", "NAVY", "North America"):
        assert not is_missing(text), text


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("http://example.com/a.jpg", True),
        ("https://x.example/z?w=1 www.foo.bar", True),
        ("example.com", True),
        ("flickr.com/photos/1", True),
        ("IMG_2034.JPG", True),
        ("IMG 2034", True),
        ("DSC00123", True),
        ("red_bus.webp?w=200", True),
        ("(C:\\photos\\x.jpg)", True),
        ("photo (3).jpeg", True),
        ("Screenshot 2026-01-05 at 12.33.44.png", True),
        ("A red bus, IMG_2034.jpg", False),
        ("red bus on the street.jpg", False),  # says what it shows
        ("amazon.com deals", False),
        ("St.Petersburg", False),
        ("a photo and/or a drawing", False),
        ("2034", False),
        ("", False),
        ("a" * 50_000, False),
        ("a." * 25_000, False),
        ("http://" + "x." * 25_000, True),
    ],
)
def test_tells_urls_and_file_names_from_captions(caption, expected):
    assert is_name(caption) is expected
